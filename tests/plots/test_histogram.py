"""The histogram of a detection: every input is in it, and the line is where flags begin."""

import numpy as np
import pytest

import causalmad as cm
from causalmad.errors import InputsError
from causalmad.evaluation import auroc
from causalmad.inputs import Inputs
from causalmad.plots.canvas import PALE, RED
from causalmad.plots.histogram import histogram
from causalmad.signatures import Activations
from causalmad.testing.toys import toy

pytest.importorskip("matplotlib")

SCORES = np.random.default_rng(0).normal(size=80)


@pytest.fixture(scope="module")
def fitted():
    made = toy("mlp", trusted=80, fresh=40)
    return cm.Detector(Activations()).fit(made.model, made.trusted)


@pytest.fixture(scope="module")
def odd():
    return toy("mlp", trusted=80, fresh=40).fresh.main * 1.5


def heights(ax):
    """Colour -> sum of the heights of its bars."""
    from matplotlib.colors import to_hex

    sums = {}
    for bar in ax.patches:
        colour = to_hex(bar.get_facecolor())
        sums[colour] = sums.get(colour, 0) + bar.get_height()
    return sums


def lines(ax):
    return [line.get_xdata()[0] for line in ax.lines]


def words(ax):
    legend = ax.get_legend()
    return [legend.get_title().get_text(), *(text.get_text() for text in legend.get_texts())]


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.25, 0.5])
def test_the_line_is_the_calibration_score_of_that_rank(fitted, odd, alpha):
    detection = fitted.detect(odd, alpha=alpha)
    kept = sorted(fitted.calibrator.scores, reverse=True)
    rank = int(np.floor(alpha * (len(kept) + 1) + 1e-9))  # this many of the p-values are at most alpha
    assert lines(detection.plot()) == [detection.threshold] == [kept[rank - 1]]
    assert detection.flags.tolist() == (detection.scores > detection.threshold).tolist()


def test_flagged_inputs_are_counted_in_another_colour(fitted, odd):
    detection = fitted.detect(odd, alpha=0.2)
    flagged = int(detection.flags.sum())
    assert 0 < flagged < len(detection)
    ax = detection.plot()
    assert heights(ax) == {PALE: len(detection) - flagged, RED: flagged}
    assert f"flagged ({flagged})" in words(ax)
    assert f"{flagged} of 40 inputs flagged at alpha = 0.2" == ax.get_title()
    red = [bar for bar in ax.patches if bar.get_facecolor()[0] > 0.8 and bar.get_height()]
    assert min(bar.get_x() for bar in red) >= detection.threshold * (1 - 1e-9)


def test_a_false_discovery_rate_has_its_own_line(fitted, odd):
    detection = fitted.detect(odd, alpha=0.5, fdr="bh")
    assert detection.flags.any()
    assert detection.flags.tolist() == (detection.scores > detection.threshold).tolist()
    nothing = fitted.detect(odd[:1] * 0, alpha=0.05, fdr="bh")
    assert not nothing.flags.any() and nothing.threshold is None and lines(nothing.plot()) == []


@pytest.mark.parametrize("calibrator", [cm.calibration.Mondrian("kind"), cm.calibration.CrossConformal(3)])
def test_no_line_where_no_single_score_decides(odd, calibrator):
    made = toy("mlp", trusted=80, fresh=40)
    columns = {"kind": np.arange(80) % 2}
    trusted, fresh = Inputs.of(made.trusted.main, columns=columns), Inputs.of(odd, columns={"kind": np.arange(40) % 2})
    detection = cm.Detector(Activations(), calibrator=calibrator).fit(made.model, trusted).detect(fresh, alpha=0.5)
    ax = detection.plot()
    assert detection.threshold is None and lines(ax) == []
    assert sum(heights(ax).values()) == len(detection)


def test_bounds_given_the_calibration_inputs_have_a_line(odd):
    made = toy("mlp", trusted=80, fresh=40)
    spec = cm.Detector(Activations(), calibrator=cm.calibration.CalibrationConditional())
    detection = spec.fit(made.model, made.trusted).detect(odd, alpha=0.3)
    assert detection.threshold is not None
    assert detection.flags.tolist() == (detection.scores > detection.threshold).tolist()


def test_labels_give_a_histogram_of_shares_for_each_kind(fitted, odd):
    detection = fitted.detect(odd, alpha=0.2)
    labels = np.arange(40) % 4 == 0
    said = words(detection.plot(labels))
    assert said[0] == f"AUROC {auroc(labels, detection.scores):.3f}"
    assert said[1:3] == ["normal (30)", "anomalous (10)"]
    alike = words(detection.plot([False] * 40))  # one kind alone has no AUROC
    assert alike[0] == "" and alike[1] == "normal (40)"


@pytest.mark.parametrize("labels", [[True] * 3, np.full(80, 2), np.zeros((80, 1)), ["a"] * 80])
def test_labels_that_do_not_fit_are_named(labels):
    with pytest.raises(InputsError, match="labels of shape"):
        histogram(SCORES, SCORES > 1, 1.0, "", labels)


@pytest.mark.parametrize(
    ("scores", "scale"),
    [
        (SCORES, "linear"),
        (np.append(SCORES, 1e6), "symlog"),
        (np.append(np.exp(SCORES), 1e6), "log"),
        (np.zeros(5), "linear"),
        (np.zeros(0), "linear"),
    ],
)
@pytest.mark.parametrize("threshold", [None, 0.7, -3.0])
def test_no_score_is_lost_on_any_axis(scores, scale, threshold):
    ax = histogram(scores, scores > 0.7, threshold, "")
    assert ax.get_xscale() == scale
    assert sum(heights(ax).values()) == len(scores)
    ax.figure.draw_without_rendering()


def test_infinite_scores_are_said_and_count_in_the_auroc():
    scores = np.append(SCORES, [np.inf, np.inf])
    labels = np.arange(82) >= 80
    ax = histogram(scores, scores > 1, 1.0, "", labels)
    assert "2 infinite scores" in ax.get_xlabel() and words(ax)[0] == "AUROC 1.000"


def test_the_callers_axes_keep_their_scale():
    from matplotlib.figure import Figure

    mine = Figure().subplots()
    mine.set_xscale("symlog")
    assert histogram(SCORES, SCORES > 1, 1.0, "", ax=mine) is mine
    assert mine.get_xscale() == "symlog" and sum(heights(mine).values()) == 80
