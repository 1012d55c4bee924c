"""Circuits are found as the papers find them, and their faithfulness is MIB's."""

from __future__ import annotations

import pytest
import torch

import causalmad
from causalmad.errors import HypothesisError
from causalmad.hypotheses import discover, edge_scores, run_circuit
from causalmad.hypotheses.donors import Donors
from causalmad.hypotheses.faithfulness import Faithfulness, faithfulness
from causalmad.inputs import Inputs
from causalmad.targets import LogitDifference


@pytest.fixture
def trusted(ids):
    return Inputs.of({"input_ids": ids})


@pytest.fixture
def donors(patcher):
    return patcher.donors


@torch.no_grad()
def test_acdc_equals_the_twin(wired, slow, twin, ids):
    threshold, ids = 0.001, ids[:, :3]
    trusted, one = Inputs.of({"input_ids": ids}), Donors(Inputs.of({"input_ids": ids[[3, 4]]}), 1)
    found = discover(wired, trusted[:2], "acdc", donors=one, threshold=threshold)
    expected = twin.acdc(slow, ids[:2], [one.inputs.main[0]] * 2, threshold)
    assert set(found.weights) == expected
    assert 0 < len(found) < found.total and all(weight >= threshold for weight in found.weights.values())


@torch.no_grad()
def test_exact_scores_equal_the_twin(wired, slow, twin, ids, trusted, donors):
    scores = edge_scores(wired, trusted[:1], "exact", donors=donors)
    clean, _ = twin.forward(slow, ids[0])
    top = int(clean.argmax())
    for column, edge in enumerate(scores.computation.edges):
        if column % 5 == 0:
            patched = [twin.patch(slow, ids[0], donor, {edge}) for donor in donors.inputs.main[:3]]
            mean = sum(float(twin.margin(one, top) - twin.margin(clean, top)) for one in patched) / 3
            assert abs(float(scores.values[0, column]) - mean) < 1e-5


@pytest.mark.parametrize("method", ["eap", "eap-ig", "eap-ig-activations"])
def test_each_inputs_scores_add_up_to_those_of_the_batch(wired, trusted, donors, method):
    """The gradient of the batch's mean target gives the mean of what each input gives alone."""
    scores = edge_scores(wired, trusted, method, donors=donors, steps=2)
    alone = torch.cat([edge_scores(wired, trusted[[i]], method, donors=donors, steps=2).values for i in range(5)])
    assert torch.allclose(scores.values, alone, atol=1e-5)
    circuit = discover(wired, trusted, method, donors=donors, steps=2)
    for column, edge in enumerate(scores.computation.edges):
        assert abs(circuit.weights[edge] - float(alone[:, column].mean())) < 1e-5


def test_a_node_is_the_sum_of_its_edges(linear, trusted):
    """On a linear model that is exact: patching a head is patching all its edges."""
    question = LogitDifference(5, 9)
    for method in ("eap", "eap-ig"):
        first = discover(linear, trusted, method, level="nodes", target=question, donors=2)
        exact = discover(linear, trusted, "exact", level="nodes", target=question, donors=2)
        for node, weight in exact.weights.items():
            assert abs(first.weights[node] - weight) < 1e-5


def test_found_on_ragged_inputs_and_the_same_again(wired, prompts):
    inputs = causalmad.open_model(wired).inputs(prompts)
    first, again = (discover(wired, inputs, "eap-ig", donors=2, seed=5) for _ in range(2))
    assert first.weights == again.weights
    assert discover(wired, inputs, "acdc", donors=1, level="nodes", threshold=1e-4).total == 10


@torch.no_grad()
def test_faithfulness_is_that_of_mib(wired, slow, twin, ids, trusted, donors):
    circuit = discover(wired, trusted, "eap", donors=donors)
    curve = circuit.faithfulness(wired, trusted, (0.05, 0.3, 1.0), donors=donors)
    assert abs(curve.values[-1] - 1) < 1e-5 and curve.sizes[-1] == circuit.total
    every = set(twin.edges_of(slow, ids[0]))

    def mean(kept):
        found = []
        for x in ids:
            clean, _ = twin.forward(slow, x)
            for donor in donors.inputs.main[:3]:
                found.append(float(twin.margin(twin.patch(slow, x, donor, every - kept), int(clean.argmax()))))
        return sum(found) / len(found)

    whole, least = mean(every), mean(set())
    for share, value in zip((0.05, 0.3), curve.values, strict=False):
        expected = (mean(set(circuit.prune(share).weights)) - least) / (whole - least)
        assert abs(value - expected) < 1e-4


def test_areas():
    curve = Faithfulness((0.1, 0.5, 1.0), (1, 5, 10), (0.5, 1.5, 1.0), 1.0, 0.0)
    assert curve.cpr == pytest.approx(0.4 * 1.0 + 0.5 * 1.25)
    assert curve.cmd == pytest.approx(0.4 * 0.5 + 0.5 * 0.25)


def test_a_circuit_runs(wired, trusted, donors, patcher):
    whole = discover(wired, trusted, "eap", donors=donors)
    clean = torch.cat([patcher.model.logits(batch) for batch in patcher.model.batches(trusted)])
    found = run_circuit(wired, whole, trusted, donors)
    assert found.shape == (5, 3, 50) and torch.allclose(found, clean[:, None].expand_as(found), atol=1e-5)
    none = run_circuit(wired, whole.prune(0.0), trusted, donors)
    expected = patcher.model.logits(patcher.donor_batch)[:3]
    assert torch.allclose(none, expected[None].expand_as(none), atol=1e-5)


def test_errors_teach(wired, trusted, donors):
    with pytest.raises(HypothesisError, match=r"'eap-ig'"):
        discover(wired, trusted, "eapp", donors=donors)
    with pytest.raises(HypothesisError, match="nodes"):
        discover(wired, trusted, level="heads", donors=donors)
    circuit = discover(wired, trusted, "eap", donors=donors)
    with pytest.raises(HypothesisError, match="nothing to keep"):
        faithfulness(wired, circuit, trusted, target=lambda logits: 0 * logits[:, 0], donors=donors)
