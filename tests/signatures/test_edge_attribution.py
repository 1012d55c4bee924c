"""Edge attribution as a signature equals the papers' formulas, input by input, and is exact where all is linear."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from causalmad import open_model
from causalmad.errors import FitError, HypothesisError
from causalmad.hypotheses import edge_scores
from causalmad.hypotheses.edges import EdgePatcher
from causalmad.signatures import EdgeAttribution
from causalmad.signatures.base import State
from causalmad.targets import Divergence, LogitDifference
from causalmad.testing.toys import toy
from tests.signatures.families import small
from tests.twins import edge_attribution_signature as twin
from tests.twins.resampling_profile import own_donors


def others_of(fitted, trusted):
    own = set(fitted.donor_digests)
    return trusted[[row for row, digest in enumerate(trusted.digests) if digest not in own]]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_columns_equal_the_twin(name, steps):
    made, slow = small(name, trusted=8, fresh=3)
    fitted = EdgeAttribution(steps=steps, donors=2, most=20).fit(open_model(made.model), made.trusted, seed=3)

    def table(row):
        return twin.scores(slow, row, own_donors(row, list(fitted.patcher.donors.inputs.main), 2), steps)

    known = twin.usual([table(row) for row in others_of(fitted, made.trusted).main])
    inside = twin.support(known, 0.95)
    names = [f"edge {sender}->{receiver}" for sender, receiver in inside[:20]]
    assert [column.name for column in fitted.columns[: len(names)]] == names
    assert len(fitted.inside) == len(inside) < len(known)
    expected = []
    for row in made.fresh.main:
        found = table(row)
        expected.append([found[edge] for edge in inside[:20]] + twin.summary(found, known, inside))
    np.testing.assert_allclose(fitted.reduced(made.fresh).values, expected, rtol=1e-4, atol=1e-5)


def test_a_donor_uses_the_spare_and_not_itself():
    made, slow = small("gpt2", trusted=8)
    fitted = EdgeAttribution(donors=2).fit(open_model(made.model), made.trusted, seed=3)
    donors = list(fitted.patcher.donors.inputs.main)
    inputs = fitted.patcher.donors.inputs[[0]]
    found = twin.scores(slow, donors[0], [donors[2], donors[1]])
    edges = fitted.patcher.computation.edges
    np.testing.assert_allclose(
        fitted.reduced(inputs).values[0, : len(fitted.kept)], [found[edges[i]] for i in fitted.kept], atol=1e-5
    )


def linear_gpt2():
    """A GPT-2 that is linear in its embeddings: no norms, linear MLPs, and the same attention whatever the input."""
    made = toy("gpt2", trusted=12, fresh=5)
    model = copy.deepcopy(made.model)
    width = model.config.n_embd
    for block in model.transformer.h:
        block.ln_1, block.ln_2, block.mlp.act = nn.Identity(), nn.Identity(), nn.Identity()
        with torch.no_grad():
            block.attn.c_attn.weight[:, : 2 * width] = 0
            block.attn.c_attn.bias[: 2 * width] = 0
            block.attn.c_attn.weight.mul_(3)
            block.mlp.c_fc.weight.mul_(3)
    model.transformer.ln_f = nn.Identity()
    return model, made


@pytest.mark.parametrize("steps", [1, 2])
def test_on_a_linear_transformer_every_score_is_the_exact_effect_of_its_edge(steps):
    model, made = linear_gpt2()
    target = LogitDifference(5, 9)
    fitted = EdgeAttribution(steps, 0.999, 1000, donors=2, target=target).fit(open_model(model), made.trusted, seed=1)
    exact = edge_scores(model, made.fresh, "exact", donors=fitted.patcher.donors, target=target).values
    found = fitted.reduced(made.fresh).values
    expected = exact[:, fitted.kept].numpy()
    assert np.abs(expected).max() > 0.1 and expected.shape[1] > 5
    np.testing.assert_allclose(found[:, : expected.shape[1]], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_as_many_columns_as_the_inputs_allow():
    made = toy("gpt2", trusted=40)
    model = open_model(made.model)
    assert len(EdgeAttribution().fit(model, made.trusted).kept) == 10
    assert len(EdgeAttribution(most=3).fit(model, made.trusted).kept) == 3
    most = EdgeAttribution(most=10_000, support=0.5).fit(model, made.trusted)
    assert len(most.kept) == len(most.inside) and torch.equal(most.kept, most.inside)
    more = EdgeAttribution(most=10_000, support=0.9).fit(model, made.trusted)
    assert set(most.inside.tolist()) < set(more.inside.tolist())


def test_an_edge_without_trusted_use_is_seen_outside():
    made = toy("gpt2", trusted=24)
    fitted = EdgeAttribution(donors=2, support=0.8).fit(open_model(made.model), made.trusted)
    scores = torch.zeros(2, len(fitted.usual.mean), dtype=torch.float64) + fitted.usual.mean
    quiet = next(i for i in range(scores.shape[1]) if i not in fitted.inside.tolist())
    scores[1, quiet] += 5
    before, after = fitted._summary(scores).tolist()
    assert before[1] == before[2] == 0 and after[1] > 100 and after[2] == 0 and after[0] > before[0]


def test_donors_stand_under_no_edits_but_the_inputs_do():
    made = toy("neox", trusted=12)
    model = open_model(made.model)
    (site,) = model.sites("gpt_neox.layers.0.mlp")
    under = replace(model, standing=lambda _: {site.place: torch.zeros_like})
    fitted = EdgeAttribution(donors=2).fit(model, made.trusted)
    assert torch.equal(EdgePatcher.of(under, fitted.patcher.donors).written, fitted.patcher.written)
    changed = replace(fitted, model=under).reduced(made.fresh).values
    assert np.abs(changed - fitted.reduced(made.fresh).values).max() > 1e-2


def test_state_restores():
    made = toy("llama")
    spec = EdgeAttribution(steps=2, donors=2)
    fitted = spec.fit(open_model(made.model), made.trusted, seed=1)
    state = fitted.state()
    again = spec.restore(open_model(made.model), State(dict(state.tensors), state.data))
    assert np.array_equal(again(made.fresh).values, fitted(made.fresh).values)
    assert set(fitted.donor_digests) <= set(made.trusted.digests)


@pytest.mark.parametrize("name", ["mlp", "conv", "bert"])
def test_models_without_known_edges_are_refused_before_any_work(name):
    made = toy(name)
    calls = []
    handle = made.model.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(HypothesisError, match="are not known"):
        EdgeAttribution().fit(open_model(made.model), made.trusted)
    handle.remove()
    assert not calls


def test_odd_options_are_named():
    for options in ({"steps": 0}, {"donors": 0}, {"most": 0}, {"support": 1.0}, {"support": 0}):
        with pytest.raises(FitError, match="Needed"):
            EdgeAttribution(**options)
    with pytest.raises(FitError, match="no slope"):
        EdgeAttribution(target=Divergence())
