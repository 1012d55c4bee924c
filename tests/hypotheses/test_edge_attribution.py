"""First-order scores of edges equal the papers' formulas, edge by edge, and are exact where the model is linear."""

from __future__ import annotations

import pytest
import torch

from causalmad.hypotheses.donors import Donors
from causalmad.hypotheses.edge_attribution import EdgeAttributor, before
from causalmad.hypotheses.edges import EdgePatcher, only
from causalmad.inputs import Inputs
from causalmad.targets import LogitDifference, TopMargin

SLOW = {"eap": "eap", "eap-ig": "eap_ig", "eap-ig-activations": "eap_ig_activations"}


def table_of(graph, scores):
    """(senders, receivers) from the twin's edge -> score."""
    table = torch.zeros(graph.allowed.shape)
    for (u, r), score in scores.items():
        table[graph.sender(u), graph.receiver(r)] += score
    return table


@pytest.mark.parametrize("method", SLOW)
def test_scores_equal_the_twin(patcher, slow, twin, ids, one_batch, method):
    steps = () if method == "eap" else (3,)
    batch, which = one_batch(patcher, ids[:2]), torch.tensor([[0, 1], [2, 3]])
    found = EdgeAttributor(patcher, TopMargin(), method, 3).scores(batch, which)
    donors = patcher.donor_batch.main
    for row in range(2):
        expected = [getattr(twin, SLOW[method])(slow, ids[row], donors[d], *steps) for d in which[row]]
        mean = torch.stack([table_of(patcher.computation, scores) for scores in expected]).mean(0)
        assert float(mean.abs().max()) > 1e-2
        assert torch.allclose(found[row], mean, atol=1e-5)


@pytest.mark.parametrize("method", SLOW)
def test_one_step_is_eap_and_rows_are_independent(patcher, prompts, method):
    inputs = patcher.model.inputs(prompts)
    (batch,) = patcher.batches(inputs)
    which = torch.tensor([[0], [1], [2], [0]])
    scores = EdgeAttributor(patcher, TopMargin(), method, 1).scores(batch, which)
    plain = EdgeAttributor(patcher, TopMargin(), "eap").scores(batch, which)
    assert torch.allclose(scores, plain, atol=1e-5)
    assert not scores[:, ~patcher.computation.allowed].any()
    several = EdgeAttributor(patcher, TopMargin(), method, 2)
    together = several.scores(batch, which)
    for row in range(4):
        (alone,) = patcher.batches(inputs[[row]])
        assert torch.allclose(several.scores(alone, which[[row]])[0], together[row], atol=1e-5)


@pytest.mark.parametrize("method", SLOW)
def test_on_a_linear_model_scores_are_exact(linear, ids, one_batch, method):
    patcher = EdgePatcher.of(linear, Donors(Inputs.of({"input_ids": ids.flip(0)}), 3))
    graph, target = patcher.computation, LogitDifference(5, 9)
    batch, which = one_batch(patcher, ids[:2]), torch.tensor([0, 2])
    scores = EdgeAttributor(patcher, target, method, 3).scores(batch, which[:, None])
    clean = patcher.model.logits(batch)
    edges = graph.allowed.nonzero().tolist()
    patched = patcher.stacked(batch, which, (only(graph, (u, r)) for u, r in edges))
    read = target.bind(clean)
    largest = 0.0
    for (u, r), logits in zip(edges, patched, strict=True):
        exact = read(logits) - read(clean)
        largest = max(largest, float(exact.abs().max()))
        assert torch.allclose(scores[:, u, r], exact, atol=1e-5)
    assert largest > 1e-2


def test_nothing_is_left_after_gradients(patcher, ids, one_batch):
    state = torch.get_rng_state()
    with torch.inference_mode():
        EdgeAttributor(patcher, TopMargin(), "eap-ig", 2).scores(one_batch(patcher, ids), torch.zeros(5, 1).long())
    module = patcher.model.module
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert all(value.requires_grad and value.grad is None for value in module.parameters())
    assert torch.equal(torch.get_rng_state(), state)


class Cube(torch.autograd.Function):
    """x ** 3 with a backward pass of its own, which knows no batches of gradients."""

    @staticmethod
    def forward(ctx, value):
        ctx.save_for_backward(value)
        return value**3

    @staticmethod
    def backward(ctx, slope):
        (value,) = ctx.saved_tensors
        return slope * 3 * value**2


class Own(torch.nn.Module):
    """Somebody's own norm."""

    def forward(self, x):
        return Cube.apply(x)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("norm", [torch.nn.LayerNorm(6), torch.nn.RMSNorm(6), torch.nn.Identity(), Own()])
def test_gradients_before_a_norm_are_its_jacobian_times_those_behind(norm, alone):
    draw = torch.Generator().manual_seed(0)
    stream, slopes = torch.randn(2, 3, 6, generator=draw), torch.randn(4, 2, 3, 6, generator=draw)
    found = before(norm, stream, slopes.clone(), alone=alone)
    for row in range(2):
        for place in range(3):
            jacobian = torch.autograd.functional.jacobian(norm, stream[row, place])
            torch.testing.assert_close(found[:, row, place], slopes[:, row, place] @ jacobian, atol=1e-5, rtol=1e-5)


def test_gradients_before_a_norm_have_the_kind_of_what_it_reads():
    class Halved(torch.nn.Module):
        def forward(self, x):
            return x.bfloat16()

    stream, slopes = torch.randn(2, 3, 6), torch.randn(4, 2, 3, 6).bfloat16()
    for alone in (True, False):
        assert before(Halved(), stream, slopes.clone(), alone=alone).dtype == torch.float32
