"""A hypothesis as a drawing: causes left of effects, with places, mechanisms and what fails."""

import networkx as nx
import pytest

import causalmad as cm
from causalmad.plots.canvas import RED

pytest.importorskip("matplotlib")


def both(left, right):
    return left and right


@pytest.fixture
def claim():
    graph = nx.DiGraph(name="gate")
    graph.add_node("left", at="0#neuron=1", value=lambda x: 1)
    graph.add_node("right", at=["0#neuron=2", "1"], value=lambda x: 1)
    graph.add_node("both", at="3", value=lambda x: 1, mechanism=both)
    graph.add_node("last", at="4", value=lambda x: 1, mechanism=lambda both: both)
    graph.add_node(cm.OUTPUT, mechanism=lambda last, right: int(last))
    nx.add_path(graph, ["left", "both", "last", cm.OUTPUT])
    graph.add_edges_from([("right", "both"), ("right", cm.OUTPUT)])
    return cm.Hypothesis(graph)


def texts(ax):
    """First line -> the text with a box."""
    return {text.get_text().split("\n")[0]: text for text in ax.texts if text.get_bbox_patch() is not None}


def test_every_node_is_right_of_its_causes(claim):
    drawn = texts(claim.draw())
    at = {name: text.get_position()[0] for name, text in drawn.items()}
    assert set(at) == set(claim.to_networkx())
    for cause, effect in claim.to_networkx().edges:
        assert at[cause] < at[effect]
    assert at["left"] == at["right"] < at["both"] < at["last"] < at["output"]


def test_boxes_do_not_overlap(claim):
    ax = claim.draw(failing=["both"])
    ax.figure.draw_without_rendering()
    boxes = [text.get_bbox_patch().get_window_extent() for text in texts(ax).values()]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    whole = ax.figure.bbox
    assert all(whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1 for box in boxes)


def test_sites_and_mechanisms_stand_below_the_names(claim):
    drawn = {name: text.get_text() for name, text in texts(claim.draw()).items()}
    assert drawn["right"] == "right\n0#neuron=2\n1"
    assert drawn["both"] == "both\n3\n= both(left, right)"
    assert drawn["last"] == "last\n4\n= f(both)"
    assert drawn["output"] == "output\n= f(last, right)"


def test_what_fails_is_marked_and_what_is_no_node_is_said(claim):
    from matplotlib.colors import to_hex

    ax = claim.draw(failing=iter(["both", "unclaimed"]))
    frames = {name: to_hex(text.get_bbox_patch().get_edgecolor()) for name, text in texts(ax).items()}
    assert [name for name, colour in frames.items() if colour == RED] == ["both"]
    assert [text.get_text() for text in ax.texts].count("fails") == 1
    assert ax.get_title() == "gate (also failing: unclaimed)"


def test_an_edge_past_a_node_does_not_cross_it(claim):
    ax = claim.draw()
    ax.figure.draw_without_rendering()
    box = texts(ax)["both"].get_bbox_patch().get_window_extent()
    arrows = [text.arrow_patch for text in ax.texts if getattr(text, "arrow_patch", None) is not None]
    assert len(arrows) == len(claim.to_networkx().edges) + 2  # right -> output bends in two layers
    inner = box.shrunk(0.9, 0.9)
    for arrow in arrows:
        path = arrow.get_path().transformed(arrow.get_transform())
        assert not path.intersects_bbox(inner, filled=False)


def test_given_axes_are_used_and_small_ones_get_small_text(claim):
    from matplotlib.figure import Figure

    mine = Figure(figsize=(2, 1)).subplots()
    assert claim.draw(mine) is mine
    assert {text.get_fontsize() for text in texts(mine).values()} != {
        text.get_fontsize() for text in texts(claim.draw()).values()
    }


def test_a_circuit_without_values_is_drawn():
    ax = cm.Hypothesis.from_circuit([("0", "2"), ("0", "4"), ("2", "4")]).draw()
    assert set(texts(ax)) == {"0", "2", "4", "output"}
