import networkx as nx
import pytest

from causalmad import OUTPUT, Hypothesis
from causalmad.report.claims import HEIGHT, WIDTH, Graph


@pytest.fixture
def hypothesis():
    graph = nx.DiGraph(name="two ways")
    for name in ("first", "second", "third (x+y)", "a as b"):
        graph.add_node(name, at=f"transformer.h.0.attn#head=1,2,3@{len(name)}", value=len)
    graph.add_edges_from([("first", "third (x+y)"), ("second", "third (x+y)"), ("third (x+y)", OUTPUT)])
    graph.add_edge("a as b", OUTPUT)
    return Hypothesis(graph)


def test_boxes_stand_apart_inside_the_drawing_and_causes_left(hypothesis):
    drawn = Graph.of(hypothesis, ())
    nodes = {node.name: node for node in drawn.nodes}
    assert set(nodes) == {*hypothesis.to_networkx()} and len(drawn.edges) == 4
    for cause, effect in hypothesis.to_networkx().edges:
        assert nodes[cause].x + WIDTH < nodes[effect].x
    for node in drawn.nodes:
        assert node.x >= 0 and node.y >= 0 and node.x + WIDTH <= drawn.width and node.y + HEIGHT <= drawn.height
        for other in drawn.nodes:
            assert node is other or abs(node.x - other.x) >= WIDTH or abs(node.y - other.y) >= HEIGHT


def test_nodes_find_the_columns_that_test_them(hypothesis):
    blocks = ("claim first", "unclaimed", "first as base, same", "claim third (x+y)", "scrub: claim second", "firsts")
    found = {node.name: [blocks[i] for i in node.blocks] for node in Graph.of(hypothesis, blocks).nodes}
    assert found["first"] == ["claim first", "first as base, same"]
    assert found["third (x+y)"] == ["claim third (x+y)"] and found["second"] == ["scrub: claim second"]
    assert found[OUTPUT] == found["a as b"] == []


def test_long_texts_are_cut_and_short_ones_stay(hypothesis):
    for node in Graph.of(hypothesis, ()).nodes:
        assert len(node.label) <= 22 and len(node.place) <= 26
    assert Graph.of(hypothesis, ()).nodes[0].label in hypothesis.to_networkx()
