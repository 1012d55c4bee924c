"""Edges are patched exactly: equal to transformers written out by hand, and to what must hold of any of them."""

from __future__ import annotations

import copy

import pytest
import torch

import causalmad
from causalmad.errors import HypothesisError
from causalmad.hypotheses.computation import Computation
from causalmad.hypotheses.donors import Donors
from causalmad.hypotheses.edges import EdgePatcher, only, sources_of
from causalmad.hypotheses.rewiring import CLEAN, DONOR
from causalmad.inputs import Inputs


def rows(count, length, seed=3):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(2, 50, (count, length), generator=draw)


@torch.no_grad()
def test_what_senders_write_is_the_residual_stream(patcher, slow, twin, ids, one_batch):
    graph = patcher.computation
    batch = one_batch(patcher, ids)
    found = graph.senders_of(graph.capture(batch, check=True))
    for row in range(len(ids)):
        _, values = twin.forward(slow, ids[row])
        assert list(values) == list(graph.senders)
        assert torch.allclose(found[row].movedim(1, 0), torch.stack(list(values.values())), atol=1e-5)


def test_edges_are_those_of_the_twin(patcher, slow, twin, ids):
    assert set(patcher.computation.edges) == set(twin.edges_of(slow, ids[0]))
    assert len(patcher.computation.edges) == int(patcher.computation.allowed.sum())


@torch.no_grad()
def test_no_edge_is_clean_and_all_edges_are_the_donor(patcher, ids, one_batch):
    batch, which = one_batch(patcher, ids), torch.tensor([0, 1, 2, 0, 1])
    clean = patcher.model.logits(batch)
    none = torch.zeros_like(patcher.computation.allowed, dtype=torch.int8)
    assert torch.equal(patcher.logits(batch, which, none), clean)
    donors = patcher.model.logits(patcher.donor_batch)[which]
    everything = sources_of(patcher.computation, none.bool())
    assert torch.allclose(patcher.logits(batch, which, everything), donors, atol=1e-5)
    # The clean values of a run in which nothing else changes are its own.
    still = torch.where(patcher.computation.allowed, CLEAN, 0)
    assert torch.allclose(patcher.logits(batch, which, still), clean, atol=1e-5)


@torch.no_grad()
def test_single_edges_and_sets_of_edges_equal_the_twin(patcher, slow, twin, ids, one_batch):
    graph, donors = patcher.computation, patcher.donor_batch.main
    batch, which = one_batch(patcher, ids[:2]), torch.tensor([1, 2])
    draw = torch.Generator().manual_seed(0)
    sets = [[edge] for edge in graph.edges[::7]]
    sets += [[graph.edges[i] for i in torch.randperm(len(graph.edges), generator=draw)[:size]] for size in (3, 20, 60)]
    tables = [only(graph, *[(graph.sender(u), graph.receiver(r)) for u, r in chosen]) for chosen in sets]
    found = list(patcher.stacked(batch, which, tables))
    for chosen, logits in zip(sets, found, strict=True):
        for row in range(2):
            expected = twin.patch(slow, ids[row], donors[which[row]], set(chosen))
            assert torch.allclose(logits[row], expected, atol=1e-5)


@torch.no_grad()
def test_padding_and_company_change_nothing(patcher, prompts):
    graph = patcher.computation
    inputs = patcher.model.inputs(prompts)
    kept = torch.rand(graph.allowed.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    sources = sources_of(graph, kept)
    batch = next(iter(patcher.model.batches(inputs)))
    together = patcher.logits(batch, torch.tensor([0, 1, 2, 0]), sources)
    for row, donor in enumerate([0, 1, 2, 0]):
        alone = next(iter(patcher.model.batches(inputs[[row]])))
        assert torch.allclose(patcher.logits(alone, torch.tensor([donor]), sources), together[row], atol=1e-5)


@torch.no_grad()
def test_nnsight_patches_the_same(model_of, ids, one_batch):
    tables, found = None, []
    for engine in ("hooks", "nnsight"):
        opened = causalmad.open_model(model_of("llama"), engine=engine)
        patcher = EdgePatcher.of(opened, Donors(Inputs.of({"input_ids": rows(3, 6, seed=9)}), 2))
        tables = (patcher.computation.allowed & (torch.arange(11)[:, None] % 2 == 0)).to(torch.int8) * DONOR
        found.append(patcher.logits(one_batch(patcher, ids), torch.tensor([0, 1, 0, 1, 0]), tables))
    assert torch.allclose(*found, atol=1e-5)


def test_nothing_is_left_on_the_model(patcher, ids, one_batch):
    module = patcher.model.module
    before = {name: dict(part.__dict__) for name, part in module.named_modules()}
    state = torch.get_rng_state()
    batch = one_batch(patcher, ids)
    sources = sources_of(patcher.computation, torch.zeros_like(patcher.computation.allowed))
    with torch.inference_mode():
        patcher.logits(batch, torch.zeros(5, dtype=torch.long), sources)
    for name, part in module.named_modules():
        assert not part._forward_hooks and not part._forward_pre_hooks
        assert dict(part.__dict__).keys() == before[name].keys()
    assert module.training and all(value.requires_grad and value.grad is None for value in module.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["gemma2", "bert", "vit"])
def test_other_families_are_refused(model_of, name):
    with pytest.raises(HypothesisError, match=r"norms what its parts write|not known"):
        Computation.of(causalmad.open_model(model_of(name)))


def test_a_stream_that_is_no_sum_is_refused(model_of, ids):
    model = copy.deepcopy(model_of("gpt2"))
    model.transformer.h[1].attn.register_forward_hook(lambda part, args, out: (2 * out[0], *out[1:]))
    with pytest.raises(HypothesisError, match="is not the sum"):
        EdgePatcher.of(model, Donors(Inputs.of({"input_ids": ids}), 3))


def test_names(model_of):
    llama = Computation.of(causalmad.open_model(model_of("llama")))
    assert llama.shared("a1.h3<k>") == "a1.g1<k>" and llama.heads_of("a1.g1<k>") == ("a1.h2", "a1.h3")
    assert str(llama.site("a1.h3")) == "model.layers.1.self_attn.o_proj:input#head=3"
    with pytest.raises(HypothesisError, match=r"a1\.h3"):
        llama.sender("a1.h4")
    with pytest.raises(HypothesisError, match=r"a1\.g1<k>"):
        llama.receiver("a1.g2<k>")


def test_donors_that_cannot_share_a_run_are_refused(model_of):
    model = model_of("gpt2")

    class Bare(type(model)):
        def forward(self, input_ids):
            return super().forward(input_ids=input_ids)

    bare = Bare(model.config)
    rows = [torch.arange(1, 2 + size) for size in range(1, 5)]
    with pytest.raises(HypothesisError, match="takes no attention_mask"):
        EdgePatcher.of(bare, Donors.draw(Inputs.of({"input_ids": rows}), 3, 0))
    EdgePatcher.of(bare, Donors.draw(Inputs.of({"input_ids": [row[:2] + i for i, row in enumerate(rows)]}), 3, 0))
