"""Copies among calibration inputs: the larger p-value holds whether they mean something or not."""

import itertools

import numpy as np
import pytest
import torch

from causalmad import Detector, FittedDetector, Inputs, Monitor
from causalmad.calibration import CalibrationConditional, Conformal, CrossConformal, Mondrian, Weighted
from causalmad.calibration.repeats import FittedRepeats
from causalmad.errors import CalibrationError, StoreError
from causalmad.signatures import Activations
from causalmad.splits import split
from causalmad.testing.toys import toy

ALPHAS = (0.1, 0.2, 0.25, 1 / 3, 0.4, 0.5, 0.6, 0.75)
MADE = toy("mlp", trusted=60, fresh=20)
COPIES = torch.cat([MADE.trusted.main, MADE.trusted.main[:40], MADE.trusted.main[:20]])


def fitted(scores, times):
    scores, times = np.array(scores, dtype=float), np.array(times)
    return FittedRepeats(Conformal().fit(scores), Conformal().fit(np.repeat(scores, times)))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_on_every_list_it_holds_for_contents_and_for_rows(size):
    """The new input is as likely to be any of the contents; or else, any of the rows, of which one is taken out."""
    for scores in itertools.product((0, 1, 2), repeat=size):
        for times in itertools.product((1, 3) if size == 4 else (1, 2, 4), repeat=size):
            rest = [[k for k in range(size) if k != new] for new in range(size)]
            p = [
                float(fitted([scores[k] for k in own], [times[k] for k in own]).p_values([float(scores[new])])[0])
                for new, own in enumerate(rest)
            ]
            rows = []
            for new, own in enumerate(rest):
                left = [*own, new] if times[new] > 1 else own
                one = fitted([scores[k] for k in left], [times[k] - (k == new) for k in left])
                rows += [float(one.p_values([float(scores[new])])[0])] * times[new]
            for alpha in ALPHAS:
                assert np.mean(np.array(p) <= alpha + 1e-12) <= alpha + 1e-9
                assert np.mean(np.array(rows) <= alpha + 1e-12) <= alpha + 1e-9


def test_the_copy_that_is_drawn_keeps_the_promise_within_strata_where_one_for_each_stratum_does_not():
    """100 contents with ten copies each; the stratum of a copy depends on the content, whose number is its score."""
    draw, found = np.random.default_rng(3), []
    for seed in range(40):
        scores, new = draw.normal(size=100), draw.normal(size=2000)
        content = np.repeat(np.arange(100), 10)
        kind, later = (draw.random(len(own)) < 1 / (1 + np.exp(-2 * own)) for own in (scores[content], new))
        inputs = Inputs.of(torch.from_numpy(scores[content, None]), columns={"kind": kind})
        _, rows = split(inputs, 0.9, seed)
        pairs = np.unique(np.stack([content, kind]), axis=1)
        shares = []
        for held, strata in ((scores[content[rows]], kind[rows]), (scores[pairs[0]], pairs[1] == 1)):
            fitted = Mondrian("kind").fit(held, covariates={"kind": strata})
            shares.append((fitted.p_values(new, covariates={"kind": later})[later] <= 0.2).mean())
        found.append(shares)
    drawn, each = np.mean(found, axis=0)
    assert drawn <= 0.2 + 3 * np.std(found, axis=0)[0] / np.sqrt(40) and each > 0.28


def test_a_content_that_is_a_part_of_all_inputs_counts_as_that():
    """One of 60 contents makes a tenth of the inputs, and has the highest score."""
    one = fitted(range(60), [1] * 59 + [7])
    assert one.p_values([59.0]).tolist() == [8 / 67] and Conformal().fit(np.arange(60.0)).p_values([59.0]) == 2 / 61
    assert one.p_values([60.0]).tolist() == [1 / 61] and one.smallest == 1 / 61
    assert len(one.scores) == 60
    one.require(0.02)
    with pytest.raises(CalibrationError, match=r"60 calibration inputs(.|\n)*of each content one counts"):
        one.require(0.015)


@pytest.mark.parametrize(
    "calibrator",
    [Conformal(), CalibrationConditional(), Mondrian("length"), CrossConformal(3), Weighted()],
    ids=str,
)
def test_detectors_with_copies_are_saved_and_score_as_before(calibrator, tmp_path):
    detector = Detector(Activations(), calibrator=calibrator)
    pool = MADE.fresh if detector.compares else None
    known = detector.fit(MADE.model, COPIES, pool)
    assert isinstance(known.calibrator, FittedRepeats)
    assert not isinstance(detector.fit(MADE.model, MADE.trusted, pool).calibrator, FittedRepeats)
    found = known.detect(MADE.fresh, alpha=0.2)
    known.save(tmp_path / "det")
    again = FittedDetector.load(tmp_path / "det", MADE.model)
    np.testing.assert_array_equal(again.detect(MADE.fresh, alpha=0.2).p_values, found.p_values)
    with pytest.raises(StoreError):
        type(calibrator)().restore(known.calibrator.state())
    if isinstance(calibrator, (CrossConformal, Weighted)):
        with pytest.raises(CalibrationError, match="has no p-values that are valid given"):
            Monitor(known, alpha=0.2)
    else:
        assert [event.p_value for event in Monitor(known, alpha=0.2)(MADE.fresh)] == found.p_values.tolist()


def test_the_threshold_is_where_flags_begin():
    found = Detector(Activations()).fit(MADE.model, COPIES).detect(torch.randn(200, 12) * 2, alpha=0.2)
    assert ((found.scores > found.threshold) == found.flags).all() and found.flags.any()
    by_kind = Detector(Activations(), calibrator=Weighted()).fit(MADE.model, COPIES, MADE.fresh)
    assert by_kind.detect(MADE.fresh, alpha=0.2).threshold is None
