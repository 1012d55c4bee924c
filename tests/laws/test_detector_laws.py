"""Every signature with Mahalanobis, and activations with every reference."""

from dataclasses import replace

import pytest

from causalmad import Detector
from causalmad.calibration import CalibrationConditional, CrossConformal, Mondrian, Weighted
from causalmad.catalogue import catalogue
from causalmad.references import Mahalanobis
from causalmad.signatures import Activations, AttributionPatching, ResamplingProfile
from causalmad.testing import detector_laws as laws
from causalmad.testing.law import EXCUSED, hold
from causalmad.testing.toys import toy

# Activations have no group "output", the conditions by default: here the second entry of every layer ("[1]").
OPTIONS = {"conditional-mahalanobis": {"on": "*[[]1]"}}

DETECTORS = {
    **{entry.name: Detector(entry.load()(), Mahalanobis()) for entry in catalogue("signatures")},
    **{
        f"activations+{entry.name}": Detector(
            Activations(), entry.load()(**entry.defaults, **OPTIONS.get(entry.name, {}))
        )
        for entry in catalogue("references")
    },
}
SAVED = {
    **DETECTORS,
    "cross": Detector(Activations(), calibrator=CrossConformal(3)),
    "mondrian": Detector(Activations(), calibrator=Mondrian("length", CalibrationConditional(), bins=2)),
    "weighted": Detector(Activations(), calibrator=Weighted()),
    "two-sided": Detector(Activations(), Mahalanobis(two_sided=True)),
    "donors": Detector(AttributionPatching(baseline="donors", steps=2)),
    "residual": Detector(ResamplingProfile(units=("mlps", "positions"), donors=2)),
    "reversed": Detector(AttributionPatching(units=("heads", "mlps", "positions"))),
}


def ready(detector, made):
    return replace(detector, signature=made.ready(detector.signature))


@pytest.mark.parametrize("law", laws.DETECTOR_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", ["mlp", "gpt2"])
@pytest.mark.parametrize("part", DETECTORS)
def test_every_detector_keeps_every_law(part, name, law):
    many = law is laws.law_a_null_scores_a_half
    made = toy(name, trusted=60 if many else 40, fresh=60 if many else 6)
    hold(law, f"{part} on {name}", ready(DETECTORS[part], made), made)


@pytest.mark.parametrize("name", [pytest.param("mlp", marks=pytest.mark.slow), "gpt2"])
def test_saved_detectors_score_the_same_bits_in_a_fresh_process(name, tmp_path):
    here = toy(name, trusted=40, fresh=9)
    wanted = SAVED if name == "gpt2" else DETECTORS
    # A hypothesis is code, which is never saved.
    wanted = {part: detector for part, detector in wanted.items() if ready(detector, here) == detector}
    wanted = {part: detector for part, detector in wanted.items() if ("*", f"{part} on {name}") not in EXCUSED}
    fitted = {part: laws.fit(detector, here, 2) for part, detector in wanted.items()}
    laws.law_saved_detectors_score_the_same_elsewhere(fitted, here, tmp_path)
