"""Loss recovered on a data set equals the definition."""

from __future__ import annotations

import networkx as nx
import pytest
import torch

import causalmad as cm
from causalmad import open_model
from causalmad.errors import HypothesisError
from causalmad.hypotheses import scrub
from causalmad.hypotheses.pool import Pool
from tests.hypotheses.claimed import FAMILIES, choices, claimed, data_of, family
from tests.twins import scrubbing as twin


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_recovered_equals_the_twin(name, labelled):
    model, data, _, slow = family(name, trusted=9)
    hypothesis, variables = claimed(name)
    labels = [int(twin.run(slow, datum.row).argmax()) for datum in data_of(data)] if labelled else None
    unclaimed = "separate" if labelled else "shared"
    found = scrub(model, hypothesis, data, labels=labels, draws=2, unclaimed=unclaimed, seed=5)
    drawn = choices(Pool.of(hypothesis, data, 5), data, 2)
    recovered, losses, missing = twin.loss_recovered(slow, variables, data_of(data), drawn, labels, labelled)
    assert found.without_donors == pytest.approx(missing)
    for kind, loss in losses.items():
        assert found.losses[kind] == pytest.approx(loss, abs=1e-5, rel=1e-5)
    assert found.recovered == pytest.approx(recovered, rel=1e-4, abs=1e-4)
    assert found.interval[0] <= found.interval[1]
    if not labelled:
        assert found.losses["model"] == 0


class Signs(torch.nn.Module):
    def forward(self, x):
        return (x > 0).float()


def planted(count=120):
    """A network whose hidden part 0 holds whether x0 > 0, and part 1 whether x1 > 0; the answer is the first of them.

    Its first module says so exactly, so that what a claim preserves is known.
    """
    out = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        out.weight.copy_(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]))
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    return torch.nn.Sequential(Signs(), out), x


def first(row):
    return bool(row["input"][0] > 0)


def second(row):
    return bool(row["input"][1] > 0)


def claim(site, value):
    graph = nx.DiGraph(name=value.__name__)
    graph.add_node("sign", at=site, value=value)
    graph.add_edge("sign", cm.OUTPUT)
    return cm.Hypothesis(graph)


def test_a_true_claim_recovers_everything_and_a_false_one_nothing():
    model, x = planted()
    true = scrub(model, claim("0#neuron=0", first), x)
    assert true.recovered == 1 and true.interval == (1, 1) and true.without_donors == 0
    for wrong in (claim("0#neuron=1", second), claim("0#neuron=0", second)):
        found = scrub(model, wrong, x)
        assert found.recovered < 0.3 and found.interval[0] <= found.recovered <= found.interval[1]
    labels = (x[:, 0] > 0).long()
    assert scrub(model, claim("0#neuron=0", first), x, labels=labels).recovered == pytest.approx(1)


def test_the_same_seed_gives_the_same_and_the_global_state_is_untouched():
    model, data, _, _ = family("gpt2", trusted=8)
    hypothesis, _ = claimed("gpt2")
    before = torch.get_rng_state()
    one, again = (scrub(open_model(model), hypothesis, data, seed=3) for _ in range(2))
    assert one == again and one != scrub(model, hypothesis, data, seed=4)
    assert torch.equal(before, torch.get_rng_state())


def test_claims_that_cannot_be_scrubbed_are_named():
    model, x = planted(6)
    with pytest.raises(HypothesisError, match="no input has donors"):
        scrub(model, claim("0", lambda row: float(row["input"][0])), x)
    with pytest.raises(HypothesisError, match="0 claim places without values"):
        scrub(model, cm.Hypothesis.from_circuit(["0"]), x)
    with pytest.raises(HypothesisError, match="5 labels for 6 inputs"):
        scrub(model, claim("0", first), x, labels=[0] * 5)
