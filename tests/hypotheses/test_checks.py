"""A check reports every defect of a claim on a model at once, and what the claim preserves."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from torch import nn

import causalmad as cm
from causalmad import Inputs, open_model
from causalmad.errors import HypothesisError
from causalmad.hypotheses.scrubbing import Scrubber
from causalmad.testing.toys import toy


class NoMask(nn.Module):
    """Reads tokens and takes no attention mask."""

    def __init__(self, model):
        super().__init__()
        self.inner = model
        self.spare = nn.Identity()

    def forward(self, input_ids):
        return self.inner(input_ids=input_ids).logits


def parity(row):
    return int(row["input_ids"][-1]) % 2


def claim(*edges, **nodes):
    """A hypothesis with nodes name=(site, value)."""
    graph = nx.DiGraph(name="claim")
    for name, (at, value) in nodes.items():
        graph.add_node(name, at=at, **({} if value is None else {"value": value}))
    graph.add_edges_from(edges or [(name, cm.OUTPUT) for name in nodes])
    return cm.Hypothesis(graph)


def problems(hypothesis, made=None):
    made = made or toy("gpt2", 20, 2)
    report = hypothesis.check(made.model, made.trusted)
    assert not report.ok and report.preserved is None
    with pytest.raises(HypothesisError, match="problem"):
        report.require()
    return list(report.problems)


def test_a_sound_claim_has_a_report_with_its_interval():
    made = toy("gpt2")
    hypothesis = claim(a=("transformer.h.0.mlp@-1", parity), b=("transformer.h.1.mlp@-1", parity))
    report = hypothesis.check(made.model, made.trusted, seed=1)
    assert report.ok and report == hypothesis.check(made.model, made.trusted, seed=1)
    report.require()
    lines = str(report).splitlines()
    assert lines[0] == "claim: no problems" and lines[1].startswith("  a: 2 values, at least ")
    assert lines[-1].startswith("  behaviour preserved: ") and "95 % interval" in lines[-1]
    low, high = report.preserved.interval
    assert low <= report.preserved.recovered <= high


def test_every_defect_at_once():
    count = iter(range(1000))
    found = problems(
        claim(
            wrong=("transformer.h.0.mpl@-1", parity),
            none=("transformer.h.0.mlp", lambda row: 1),
            many=("transformer.h.1.mlp", lambda row: next(count)),
            failing=("transformer.h.1", lambda row: row["subject"]),
            odd=("transformer.h.0", lambda row: {1, 2}),
        )
    )
    texts = "\n".join(found)
    assert len(found) == 5
    assert "node 'wrong': " in texts and "Try one of: transformer.h.0.mlp | " in texts
    assert texts.split("Try one of: ")[1].splitlines()[0].count("|") == 2  # the nearest three
    assert "node 'none': value() is the same for all 20 trusted inputs" in texts
    assert "node 'many': value() is unique for 20 of 20 trusted inputs" in texts
    assert "value() of node 'failing' failed: KeyError: 'subject'" in texts
    assert "value() of node 'odd' is a set, which is not hashable" in texts


def test_one_value_without_a_donor_is_counted():
    made = toy("gpt2", 20, 2)
    longest = max(made.trusted.lengths)
    rows = [row for row in made.trusted.main if len(row) < longest] + [torch.ones(longest, dtype=torch.long)]
    trusted = Inputs.of({"input_ids": rows})
    report = claim(a=("transformer.h.0", lambda row: len(row["input_ids"]) == longest)).check(made.model, trusted)
    assert f"value() is unique for 1 of {len(rows)} trusted inputs" in report.problems[0]
    assert report.donors == {"a": (2, 0)} and "  a: 2 values, at least 0 donors each" in str(report)


def test_sites_against_the_order_of_an_edge():
    nodes = {"a": ("transformer.h.1.mlp", parity), "b": ("transformer.h.0.mlp", parity)}
    (found,) = problems(claim(("a", "b"), ("b", cm.OUTPUT), **nodes))
    assert found == "edge 'a' -> 'b': a site of 'a' does not run before all of 'b'"
    nodes["a"] = (["transformer.h.0@-1", "transformer.h.0.attn"], parity)
    nodes["b"] = ("transformer.h.0@0", parity)
    (found,) = problems(claim(("a", "b"), ("b", cm.OUTPUT), **nodes))
    assert "edge 'a' -> 'b'" in found


@pytest.mark.parametrize(
    ("site", "text"),
    [
        ("transformer.h.0.attn#head=5", "has heads 0..1"),
        ("transformer.h.0@S2", "no position column 'S2'"),
        ("transformer.h.0@7", "lies outside"),
        ("transformer.h.0@all", "pooled position"),
        ("transformer.h.0.mlp#neuron=99", "neuron"),
    ],
)
def test_sites_that_cannot_be_read_or_replaced(site, text):
    (found,) = problems(claim(a=(site, parity), b=("transformer.h.1@-1", parity)))
    assert found.startswith("node 'a': ") and text in found


def test_a_module_that_never_runs():
    made = toy("gpt2", 8, 2)
    rows = Inputs.of({"input_ids": torch.stack([row[:3] for row in made.trusted.main])})
    report = claim(a=("spare", parity)).check(NoMask(made.model), rows)
    assert len(report.problems) == 1 and report.problems[0].startswith("node 'a': ")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("transformer.h.0.attn#head=0,1", "transformer.h.0.attn#head=1@-1", True),
        ("transformer.h.0", "transformer.h.0@-1", True),
        ("transformer.h.0@0", "transformer.h.0@-1", False),
        ("transformer.h.0.attn#head=0", "transformer.h.0.attn#head=1", False),
    ],
)
def test_two_claims_of_one_site(one, other, same):
    made = toy("gpt2", 20, 2)
    report = claim(a=(one, parity), b=(other, parity)).check(made.model, made.trusted)
    assert any("nodes 'a' and 'b' both claim" in line for line in report.problems) == same == (not report.ok)


def test_donors_of_another_length_need_an_attention_mask():
    made = toy("gpt2", 20, 2)
    model = NoMask(made.model)
    hypothesis = claim(a=("inner.transformer.h.0@-1", parity))
    report = hypothesis.check(model, made.trusted)
    assert "lengths cannot share a run: NoMask takes no attention_mask" in report.problems[0]
    with pytest.raises(HypothesisError, match="takes no attention_mask") as error:
        Scrubber.of(open_model(model), hypothesis, made.trusted, 0)
    assert "inputs of one length" in str(error.value)


def test_mechanisms_that_are_missing_fail_or_contradict_the_values():
    def graph():
        return claim(
            ("a", "b"),
            ("b", cm.OUTPUT),
            a=("transformer.h.0.mlp@-1", parity),
            b=("transformer.h.1.mlp@-1", lambda row: 1 - parity(row)),
        ).to_networkx()

    made, found = toy("gpt2", 20, 2), {}
    for name, (inner, output) in {
        "sound": (lambda a: 1 - a, lambda b: b),
        "no inner": (None, lambda b: b),
        "no output": (lambda a: 1 - a, None),
        "failing": (lambda b: 0, lambda b: b),
        "other": (lambda a: a, lambda b: b),
        "no class": (lambda a: 1 - a, lambda b: "b"),
    }.items():
        some = graph()
        some.nodes["b"].update({} if inner is None else {"mechanism": inner})
        some.nodes[cm.OUTPUT].update({} if output is None else {"mechanism": output})
        found[name] = cm.Hypothesis(some).check(made.model, made.trusted).problems
    assert found["sound"] == ()
    assert found["no inner"] == ("node 'b': no mechanism=, so that the others' predict no answer",)
    assert found["no output"] == ("node 'output': no mechanism=, so that the others' predict no answer",)
    assert "mechanism() of 'b' failed: TypeError" in found["failing"][0]
    assert found["other"] == ("node 'b': mechanism() is not value() on 20 of 20 trusted inputs",)
    assert "the output's mechanism gave 'b'" in found["no class"][0]


def test_claims_without_values_are_checked_as_far_as_they_go():
    made = toy("gpt2", 20, 2)
    report = claim(a=("transformer.h.0", None)).check(made.model, made.trusted)
    assert report.ok and report.preserved is None and report.donors == {}
    with pytest.raises(HypothesisError, match="a claim places without values"):
        Scrubber.of(open_model(made.model), claim(a=("transformer.h.0", None)), made.trusted, 0)
