"""Circuits: pruned to what is alive, kept as text, drawn, and turned into a claim."""

from __future__ import annotations

import networkx as nx
import pytest
import torch

from causalmad.errors import HypothesisError, StoreError
from causalmad.hypotheses import Circuit


@pytest.fixture
def circuit(patcher):
    graph = patcher.computation
    weights = torch.randn(graph.allowed.shape, generator=torch.Generator().manual_seed(4))
    return Circuit.of_edges(graph, weights, method="drawn")


def test_the_whole_has_every_edge(circuit, patcher):
    assert len(circuit) == circuit.total == int(patcher.computation.allowed.sum())
    assert torch.equal(circuit.kept(patcher.computation), patcher.computation.allowed)
    assert nx.is_directed_acyclic_graph(circuit.graph) and nx.is_frozen(circuit.graph)
    assert circuit.to_networkx().nodes["m1"]["at"].endswith("mlp")


def test_pruning_keeps_the_strongest_that_lead_somewhere(circuit):
    pruned = circuit.prune(count=12)
    strongest = sorted(circuit.weights, key=lambda edge: -abs(circuit.weights[edge]))[:12]
    assert set(pruned.weights) <= set(strongest)
    for edge in set(strongest) - set(pruned.weights):
        # Each edge that is gone has a sender that hears nothing or a receiver that nobody hears.
        left = nx.DiGraph(circuit.graph)
        left.remove_edges_from([other for other in circuit.weights if other not in strongest])
        assert not (nx.has_path(left, "input", edge[0]) and nx.has_path(left, edge[1], "logits"))
    for sender, receiver in pruned.weights:
        assert nx.has_path(pruned.graph, "input", sender) and nx.has_path(pruned.graph, receiver, "logits")
    assert pruned.total == circuit.total and len(circuit.prune(0.5)) <= circuit.total // 2
    assert len(circuit.prune(1.0)) == len(circuit) and len(circuit.prune(0.0)) == 0


def test_nodes_keep_the_edges_between_them(patcher):
    graph = patcher.computation
    weights = torch.arange(len(graph.senders)).float()
    circuit = Circuit.of_nodes(graph, weights)
    assert circuit.total == len(circuit) == 10
    pruned = circuit.prune(count=2)
    assert set(pruned.weights) == {"m1", "a1.h3"}
    kept = pruned.kept(graph)
    alive = [graph.sender(name) for name in ("input", "a1.h3", "m1")]
    assert torch.equal(kept[alive], graph.allowed[alive]) and int(kept.sum()) == int(graph.allowed[alive].sum())


def test_text_there_and_back(circuit, patcher):
    for one in (circuit, circuit.prune(0.1), Circuit.of_nodes(patcher.computation, torch.ones(11))):
        again = Circuit.from_json(one.to_json())
        assert again.weights == one.weights and repr(again) == repr(one)
        assert dict(again.graph.nodes(data=True)) == dict(one.graph.nodes(data=True))
        assert list(again.graph.edges(data=True)) == list(one.graph.edges(data=True))


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"schema": 9, "level": "edges", "total": 1, "method": "", "nodes": [], "edges": []}']
)
def test_other_text_is_refused(text):
    with pytest.raises(StoreError, match="circuit"):
        Circuit.from_json(text)


def test_drawing(circuit, patcher):
    import matplotlib

    before = dict(matplotlib.rcParams)
    axes = circuit.prune(0.2).draw()
    texts = {text.get_text() for text in axes.texts}
    assert {"input", "logits"} <= texts and not any("<" in text for text in texts)
    assert Circuit.of_nodes(patcher.computation, torch.ones(11)).draw(axes) is axes
    circuit.prune(0.0).draw()
    axes.figure.canvas.draw()
    assert dict(matplotlib.rcParams) == before


def test_a_claim(circuit):
    claim = circuit.prune(0.3).to_hypothesis("found")
    sites = {site for claimed in claim.claims for site in claimed.at}
    assert sites and sites <= {data["at"] for _, data in circuit.graph.nodes(data=True) if "at" in data}
    with pytest.raises(HypothesisError, match="no head and no MLP"):
        circuit.prune(0.0).to_hypothesis()


@pytest.mark.parametrize("arguments", [{}, {"share": 0.5, "count": 3}, {"share": 1.5}, {"count": -1}])
def test_pruning_errors(circuit, arguments):
    with pytest.raises(HypothesisError, match="prune"):
        circuit.prune(**arguments)


def test_a_circuit_of_another_model(circuit, patcher):
    other = nx.DiGraph()
    other.add_edge("a7.h0", "logits", weight=1.0)
    with pytest.raises(HypothesisError, match=r"a7\.h0"):
        Circuit(other, "edges", 1).kept(patcher.computation)
