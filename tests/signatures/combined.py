"""What every signature of signatures has to keep: files, names, explanations, repairs."""

import numpy as np

from causalmad import Detector, FittedDetector
from causalmad.names import detector_text, parse_detector


def survives(spec, made, folder):
    """Saved and loaded, written and read, explained: the same."""
    detector = Detector(spec)
    assert parse_detector(detector_text(detector)) == detector
    fitted = detector.fit(made.model, made.trusted)
    fitted.save(folder)
    again = FittedDetector.load(folder, made.model)
    np.testing.assert_array_equal(again.score(made.fresh), fitted.score(made.fresh))
    assert again.signature.columns == fitted.signature.columns
    for reason, score in zip(fitted.explain(made.fresh), fitted.score(made.fresh)):
        np.testing.assert_allclose(sum(part.amount for part in reason.contributions), score, rtol=1e-6)
    return fitted
