"""Interchange-intervention accuracy on a data set equals the definition."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch

import causalmad as cm
from causalmad.errors import HypothesisError
from causalmad.hypotheses import interchange_accuracy
from causalmad.hypotheses.interchange import is_causal_model, predict
from tests.hypotheses.claimed import FAMILIES, claimed, data_of, family
from tests.twins import interchange as twin


@pytest.mark.parametrize("name", FAMILIES)
def test_accuracy_equals_the_twin(name):
    model, inputs, _, slow = family(name, trusted=10)
    hypothesis, variables = claimed(name, mechanisms=True)
    found = interchange_accuracy(model, hypothesis, inputs, pairs=25, seed=3)
    data, rng = data_of(inputs), np.random.default_rng([3, 13])
    for claim in found:
        base, source = rng.integers(10, size=25), rng.integers(10, size=25)
        pairs = [(data[b], data[s]) for b, s in zip(base, source, strict=True)]
        share, changed = twin.accuracy(slow, variables, claim, pairs)
        assert found[claim].share == pytest.approx(share) and found[claim].changed == pytest.approx(changed)
        assert found[claim].interval[0] <= share <= found[claim].interval[1] and found[claim].pairs == 25
    assert set(found) == {"early", "late", "side"}


def test_predictions_follow_the_graph():
    """What is set is not computed again, and what follows from it is."""
    hypothesis, _ = claimed("gpt2", mechanisms=True)
    values = {"early": True, "late": 1, "side": 0}
    assert predict(hypothesis, values, {}) == 3 + 5
    assert predict(hypothesis, values, {"late": 3}) == 3 + 15
    assert predict(hypothesis, values, {"side": 1}) == 3 + 10
    assert predict(hypothesis, values, {"early": False}) == 0


def test_arrays_reach_mechanisms_as_arrays():
    graph = nx.DiGraph()
    graph.add_node("vector", at="0", value=lambda row: row["input"].sign())
    graph.add_node(cm.OUTPUT, mechanism=lambda vector: int(np.argmax(vector)))
    graph.add_edge("vector", cm.OUTPUT)
    x = torch.eye(3).repeat(2, 1) + 0.001 * torch.arange(6)[:, None]
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    found = interchange_accuracy(model, cm.Hypothesis(graph), x * 2 - 1, pairs=40)
    assert found["vector"].share == 1 and found["vector"].changed > 0.3


def test_missing_mechanisms_and_failing_ones_are_named():
    model, inputs, _, _ = family("gpt2", trusted=6)
    without, _ = claimed("gpt2")
    assert not is_causal_model(without)
    with pytest.raises(HypothesisError, match="no mechanism on 'late'") as error:
        interchange_accuracy(model, without, inputs)
    assert "add_node" in str(error.value)
    graph = claimed("gpt2", mechanisms=True)[0].to_networkx()
    for mechanism, text in (
        (lambda early: 0, "mechanism\\(\\) of 'output' failed: TypeError"),
        (lambda **_: "a", "output's mechanism gave 'a'"),
    ):
        graph.nodes[cm.OUTPUT]["mechanism"] = mechanism
        with pytest.raises(HypothesisError, match=text):
            interchange_accuracy(model, cm.Hypothesis(graph), inputs)
    del graph.nodes[cm.OUTPUT]["mechanism"]
    with pytest.raises(HypothesisError, match="no mechanism on 'output'"):
        interchange_accuracy(model, cm.Hypothesis(graph), inputs)


def test_claims_without_values_are_named():
    graph = nx.DiGraph()
    graph.add_node("place", at="0")
    graph.add_node(cm.OUTPUT, mechanism=lambda place: 0)
    graph.add_edge("place", cm.OUTPUT)
    with pytest.raises(HypothesisError, match="place claim places without"):
        interchange_accuracy(torch.nn.Sequential(torch.nn.Identity()), cm.Hypothesis(graph), torch.randn(4, 2))
