"""A hypothesis says all that is wrong with it at once, and is a plain graph otherwise."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch

import causalmad as cm
from causalmad.errors import HypothesisError
from causalmad.hypotheses.graph import ArrayValue, comparable


def chain(*names, **attributes):
    graph = nx.DiGraph(name="chain")
    for place, name in enumerate(names):
        graph.add_node(name, at=str(place), value=len, **attributes)
    nx.add_path(graph, [*names, cm.OUTPUT])
    return graph


def text_of(graph):
    with pytest.raises(HypothesisError) as error:
        cm.Hypothesis(graph)
    return str(error.value)


def test_every_defect_is_named_at_once():
    graph = chain("a", "b")
    graph.add_edges_from([("b", "a"), ("c", "c")])
    graph.nodes["a"]["vlaue"] = len
    graph.nodes["b"]["value"] = 3
    graph.nodes["b"]["tolerance"] = 0
    graph.add_node(cm.OUTPUT, mechanism="sum", value=len)
    graph.add_node(7, at=3)
    graph.add_edge(cm.OUTPUT, "d")
    graph.add_node("d", at=["0", ""])
    lines = text_of(graph).splitlines()
    assert lines[0] == "15 problems in 'chain':"
    wanted = [
        "cycle: a -> b -> a",
        "cycle: c -> c",
        "node 'a': unknown attribute 'vlaue'",
        "node 'b': value= is not a function",
        "node 'b': tolerance=0 is no positive number",
        "node 'output': unknown attribute 'value'",
        "node 'output': mechanism= is not a function",
        "node 'output': the output has no effects",
        "node 'c': at= is missing",
        "node 'c': unreachable: no path leads from it to the output",
        "node 7: names are texts",
        "node 7: at= is missing",
        "node 7: unreachable",
        "node 'd': at= is missing",
        "node 'd': unreachable",
    ]
    found = [line.strip().replace("b -> a -> b", "a -> b -> a") for line in lines[1:]]
    assert len(found) == len(wanted) and all(any(line.startswith(text) for line in found) for text in wanted), found


@pytest.mark.parametrize("graph", [nx.DiGraph(), nx.DiGraph([("a", "b")])])
def test_a_missing_output_is_named(graph):
    graph.add_nodes_from(list(graph), at="0")
    assert "no edge leads to causalmad.OUTPUT" in text_of(graph)
    graph.add_node(cm.OUTPUT)
    assert "no edge leads to causalmad.OUTPUT" in text_of(graph)


def test_one_problem_is_one_and_other_graphs_are_none():
    graph = chain("a")
    del graph.nodes["a"]["at"]
    assert text_of(graph).startswith("1 problem in 'chain'")
    assert "a Graph is no networkx.DiGraph" in text_of(nx.Graph())


def test_claims_come_in_order_and_the_graph_cannot_be_changed_afterwards():
    graph = chain("z", "a")
    graph.add_node("m", at=["3", "4@-1"])
    graph.add_edge("m", "a")
    hypothesis = cm.Hypothesis(graph)
    assert [claim.name for claim in hypothesis.claims] == ["m", "z", "a"]
    assert hypothesis.parents("a") == ("m", "z") and hypothesis.parents(cm.OUTPUT) == ("a",)
    assert hypothesis.claim("m").at == ("3", "4@-1") and hypothesis.claim("m").value is None
    graph.nodes["a"]["at"] = "elsewhere"
    copy = hypothesis.to_networkx()
    copy.remove_node("a")
    assert hypothesis.claim("a").at == ("1",) and len(hypothesis.claims) == 3
    assert repr(hypothesis) == "Hypothesis('chain', 3 claims, 3 edges)"


def test_equal_hypotheses_are_equal():
    assert cm.Hypothesis(chain("a")) == cm.Hypothesis(chain("a"))
    assert hash(cm.Hypothesis(chain("a"))) == hash(cm.Hypothesis(chain("a")))
    assert cm.Hypothesis(chain("a")) != cm.Hypothesis(chain("a", tolerance=0.1))
    assert cm.Hypothesis(chain("a")) != cm.Hypothesis(chain("b"))


def test_circuits_claim_places_without_values():
    nodes = cm.Hypothesis.from_circuit(["1", "2"])
    assert [claim.at for claim in nodes.claims] == [("1",), ("2",)] and nodes.parents(cm.OUTPUT) == ("1", "2")
    edges = cm.Hypothesis.from_circuit([("1", "2"), ("2", cm.OUTPUT)], name="edges")
    assert edges.name == "edges" and edges.parents("2") == ("1",) and edges.parents(cm.OUTPUT) == ("2",)
    graph = nx.DiGraph([("head", "mlp"), ("mlp", cm.OUTPUT)])
    graph.nodes["head"]["at"] = "h.0#head=1"
    found = cm.Hypothesis.from_circuit(graph)
    assert found.claim("head").at == ("h.0#head=1",) and found.claim("mlp").at == ("mlp",)
    with pytest.raises(HypothesisError, match="no edge leads"):
        cm.Hypothesis.from_circuit([])


def test_values_are_compared_within_the_tolerance():
    assert comparable(torch.tensor(3), 1e-6, "a") == 3 and comparable(np.float32(0.5), 1e-6, "a") == 0.5
    one, other, third = (comparable(np.array([0.1, x]), 0.1, "a") for x in (0.2, 0.22, 0.4))
    assert one == other != third and len({one, other, third}) == 2
    assert isinstance(one, ArrayValue) and one.array.tolist() == [0.1, 0.2]
    assert comparable([1, 2], 1e-6, "a") == comparable(torch.tensor([1, 2]), 1e-6, "a") != comparable([[1, 2]], 1, "a")
    assert comparable(("x", 2), 1e-6, "a") == ("x", 2)


@pytest.mark.parametrize("value", [{"a": 1}, [[1], [1, 2]], ["x", "y"], ([1],)])
def test_values_that_cannot_be_compared_are_named(value):
    with pytest.raises(HypothesisError, match=r"value\(\) of node 'a' is") as error:
        comparable(value, 1e-6, "a")
    assert "tuple" in str(error.value)


def test_failing_and_missing_values_are_named():
    graph = chain("a")
    graph.nodes["a"]["value"] = lambda row: row["subject"]
    with pytest.raises(HypothesisError, match=r"value\(\) of node 'a' failed: KeyError: 'subject'") as error:
        cm.Hypothesis(graph).claims[0].of({"input": 1})
    assert "['input']" in str(error.value)
    with pytest.raises(HypothesisError, match="claims a place without a value"):
        cm.Hypothesis.from_circuit(["1"]).claims[0].of({})


def test_drawing_gives_axes_and_leaves_the_style_alone():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    hypothesis = cm.Hypothesis(chain("a", "b"))
    axes = hypothesis.draw(failing=["b"])
    assert axes.get_title() == "chain" and {"a\n0", "b\n1", "output"} <= {text.get_text() for text in axes.texts}
    figure, mine = pyplot.subplots()
    assert hypothesis.draw(mine) is mine
    assert dict(matplotlib.rcParams) == before
    pyplot.close(axes.figure)
    pyplot.close(figure)
