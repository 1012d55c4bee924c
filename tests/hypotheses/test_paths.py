"""Path patching equals the papers' four runs, and what a path must not do it does not."""

from __future__ import annotations

import copy

import pytest
import torch

from causalmad.errors import HypothesisError
from causalmad.hypotheses.donors import Donors
from causalmad.hypotheses.edges import EdgePatcher, only
from causalmad.hypotheses.paths import path_effects, path_sources
from causalmad.inputs import Inputs
from causalmad.targets import TopMargin

PATHS = {
    "a0.h1->logits": ("a0.h1", ["logits"], False),
    "a0.h1~>logits": ("a0.h1", ["logits"], True),
    "input->m1": ("input", ["m1"], False),
    "input~>m1": ("input", ["m1"], True),
    "m0->a1.h2<q>": ("m0", ["a1.h2<q>"], False),
    "a0.h3~>a1.h2<q>": ("a0.h3", ["a1.h2<q>"], True),
    "m1->logits": ("m1", ["logits"], False),
}


@torch.no_grad()
def test_single_hops_equal_the_four_runs(patcher, slow, twin, ids, one_batch):
    batch, which = one_batch(patcher, ids[:2]), torch.tensor([[0, 1], [2, 0]])
    tables = [path_sources(patcher.computation, path) for path in PATHS]
    kl, change = path_effects(patcher, TopMargin(), batch, which, tables)
    for row in range(2):
        clean, _ = twin.forward(slow, ids[row])
        top = int(clean.argmax())
        for column, donor in enumerate(patcher.donor_batch.main[which[row]]):
            for number, (sender, receivers, through) in enumerate(PATHS.values()):
                patched = twin.path(slow, ids[row], donor, sender, receivers, through)
                assert abs(float(kl[row, number, column] - twin.kl(clean, patched))) < 1e-5
                expected = twin.margin(patched, top) - twin.margin(clean, top)
                assert abs(float(change[row, number, column] - expected)) < 1e-5


@torch.no_grad()
def test_longer_paths_are_their_hops_in_turn(patcher, slow, twin, ids, one_batch):
    """a0.h1 -> a1.h2<q> -> logits: only the logits see the changed a1.h2, and it only through its query."""
    batch, which = one_batch(patcher, ids[:1]), torch.tensor([1])
    (logits,) = patcher.stacked(batch, which, [path_sources(patcher.computation, "a0.h1->a1.h2<q>->logits")])
    donor = patcher.donor_batch.main[1]
    _, other = twin.forward(slow, donor)

    def query(sender, receiver, value):
        return other[sender] if (sender, receiver) == ("a0.h1", "a1.h2<q>") else value

    _, changed = twin.forward(slow, ids[0], query)

    def last(sender, receiver, value):
        return changed[sender] if (sender, receiver) == ("a1.h2", "logits") else value

    expected, _ = twin.forward(slow, ids[0], last)
    assert torch.allclose(logits[0], expected, atol=1e-5)
    assert not torch.allclose(expected, twin.forward(slow, ids[0])[0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_head_that_shares_its_keys_takes_no_other_along(model_of, twin, ids, one_batch):
    patcher = EdgePatcher.of(model_of("llama"), Donors(Inputs.of({"input_ids": ids}), 4))
    slow, donor = copy.deepcopy(model_of("llama")).eval(), ids[3]
    batch, which = one_batch(patcher, ids[:1]), torch.tensor([3])
    table = path_sources(patcher.computation, "input->a0.h1<v>")
    (logits,) = patcher.stacked(batch, which, [table])
    (_, clean), (_, other) = twin.forward(slow, ids[0]), twin.forward(slow, donor)

    def read(sender, receiver, value):
        if receiver == "a0.g0<v>":
            return other[sender]
        return clean[sender] if sender == "a0.h0" else value

    expected, _ = twin.forward(slow, ids[0], read)
    assert torch.allclose(logits[0], expected, atol=1e-5)


def test_a_direct_path_is_a_single_edge(patcher):
    graph = patcher.computation
    edge = only(graph, (graph.sender("a0.h2"), graph.receiver("logits")))
    assert torch.equal(path_sources(graph, "a0.h2 -> logits"), edge)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a0.h1", "is no path"),
        ("a0.h1->", "is no path"),
        ("a0.h9->logits", r"no sender 'a0\.h9'"),
        ("a0.h1->a1.h9<q>", "no receiver"),
        ("a1.h1->a0.h1<q>", "does not read what"),
        ("a1.h1->m0->logits", "does not read what"),
        ("input->logits->m1", "cannot go on"),
        ("a0.h1->input", "no receiver 'input'"),
    ],
)
def test_errors_teach(patcher, text, message):
    with pytest.raises(HypothesisError, match=message):
        path_sources(patcher.computation, text)


def test_an_effect_on_nothing_is_exactly_nothing(patcher, ids, one_batch):
    nothing = torch.zeros_like(patcher.computation.allowed, dtype=torch.int8)
    batch = one_batch(patcher, ids)
    kl, change = path_effects(patcher, TopMargin(), batch, torch.zeros(5, 2).long(), [nothing])
    assert not kl.any() and not change.any()
