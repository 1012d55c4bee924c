"""Plots leave nothing behind, show themselves in notebooks, and say what is missing."""

import pickle
import subprocess
import sys

import pytest

from causalmad.errors import SpecError
from causalmad.explanation import Contribution, Explanation
from causalmad.hypotheses import Hypothesis
from causalmad.plots.histogram import histogram
from causalmad.signatures.base import Column

matplotlib = pytest.importorskip("matplotlib")

PARTS = tuple(Contribution(Column(f"{i}", f"h.{i // 2}#head={i % 2}"), 1.0, 0.0, 0.0) for i in range(4))
FOUND = Explanation("x", 4.0, 0.1, PARTS, ())


def plots():
    import numpy as np

    scores = np.arange(5.0)
    return {
        "histogram": lambda ax=None: histogram(scores, scores > 3, 3.0, "title", scores > 2, ax),
        "bars": lambda ax=None: FOUND.plot(ax=ax),
        "heatmap": lambda ax=None: FOUND.heatmap(ax),
        "graph": lambda ax=None: Hypothesis.from_circuit(["0"]).draw(ax),
    }


@pytest.mark.parametrize("name", list(plots()))
def test_the_style_and_pyplot_stay_as_they_are(name):
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    before, open_figures = dict(matplotlib.rcParams), pyplot.get_fignums()
    draw = plots()[name]
    draw().figure.draw_without_rendering()
    mine = Figure().subplots()
    assert draw(mine) is mine and draw().figure is not draw().figure
    assert dict(matplotlib.rcParams) == before and pyplot.get_fignums() == open_figures


@pytest.mark.parametrize("name", list(plots()))
def test_a_notebook_shows_the_axes_as_an_image(name):
    formatters = pytest.importorskip("IPython.core.formatters")
    ax = plots()[name]()
    for shown in (ax, ax.figure):
        assert formatters.PNGFormatter()(shown).startswith(b"\x89PNG")
    again = pickle.loads(pickle.dumps(ax))
    assert again.get_title() == ax.get_title()


@pytest.mark.parametrize("name", list(plots()))
def test_without_matplotlib_the_error_says_what_to_install(name, monkeypatch):
    draw = plots()[name]
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SpecError) as error:
        draw()
    assert error.value.tries == ("pip install 'causalmad[plot]'",)


@pytest.mark.parametrize("name", list(plots()))
def test_what_is_no_axes_is_named(name):
    from matplotlib.figure import Figure

    for wrong in (Figure(), Figure().subplots(1, 2)):
        with pytest.raises(SpecError, match="matplotlib axes"):
            plots()[name](wrong)


def test_neither_matplotlib_nor_pyplot_is_loaded_before_its_time():
    code = (
        "import sys\n"
        "from causalmad.plots import bars, canvas, graph, heatmap, histogram, leaderboard, tables\n"
        "assert 'matplotlib' not in sys.modules\n"
        "bars.bars([('a', 1.0)], 'title').figure.draw_without_rendering()\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
