"""The plot of a leaderboard: every detector on one line, in the leaderboard's order."""

import pytest

from causalmad.evaluation.leaderboard import Leaderboard
from causalmad.evaluation.logs import Log
from tests.evaluation.logged import made_up, suite

pytest.importorskip("matplotlib")

GAPS = {
    "activations": {"a": 1.5, "b": 1.5},
    "peaked": {"a": 4.0, "b": 0.0},
    "weak": {"a": 0.5, "b": 0.5},
}


@pytest.fixture(scope="module")
def board():
    refused = Log("a", "narrow", 0, {**made_up("a", "narrow", 0, 0).content, "refused": "no blocks"})
    return Leaderboard.of([*suite(GAPS, 2), refused], "made up")


def test_every_detector_has_one_line_in_order(board):
    ax = board.plot()
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert names == [*board.order, "narrow (does not apply to 1)"] and ax.yaxis_inverted()
    assert "applies to no task" in {text.get_text() for text in ax.texts}
    assert ax.get_title() == "made up: AUROC over 2 seeds"


def test_dots_are_the_worst_task_and_the_mean(board):
    ax = board.plot()
    dots = {line.get_label(): line for line in ax.lines}
    worst, mean = dots["worst task, 95 % interval"], dots["mean over tasks"]
    assert list(worst.get_xdata()) == [board.worst(name)[1] for name in board.order]
    assert list(mean.get_xdata()) == [board.mean(name) for name in board.order]
    assert list(worst.get_ydata()) == list(mean.get_ydata()) == [0, 1, 2]
    spans = [tuple(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] >= 0]
    for name in board.order:
        task, _ = board.worst(name)
        assert board.standings[name][task].ci95 in spans
        assert task in {text.get_text() for text in ax.texts}


def test_the_baseline_is_marked(board):
    ax = board.plot()
    bold = [tick.get_text() for tick in ax.get_yticklabels() if tick.get_fontweight() == "bold"]
    assert bold == ["activations"]
    line = next(line for line in ax.lines if line.get_label() == "the baseline's worst task")
    assert line.get_xdata()[0] == board.worst("activations")[1]


def test_an_empty_leaderboard_is_an_empty_plot():
    ax = Leaderboard("", (), {}, {}, {}).plot()
    assert ax.get_title() == "leaderboard: AUROC over 0 seeds" and not ax.get_yticklabels()
