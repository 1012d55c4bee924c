"""Path patching as a signature: its columns are the paths' effects, whoever else is in the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import causalmad
from causalmad.errors import FitError, HypothesisError
from causalmad.hypotheses.paths import path_effects, path_sources
from causalmad.signatures import PathPatching
from causalmad.signatures.base import State
from causalmad.targets import TopMargin
from causalmad.testing.toys import toy

PATHS = ("a0.h1->logits", "input~>a1.h0<v>", "m0->a1.h1->logits")


@pytest.fixture(params=["gpt2", "llama", "neox"])
def case(request):
    return toy(request.param)


def test_columns_are_effects(case):
    model = causalmad.open_model(case.model)
    fitted = PathPatching(PATHS, donors=2).fit(model, case.trusted, seed=3)
    assert [column.name for column in fitted.columns[:3]] == [f"paths kl {path}" for path in PATHS]
    assert len(fitted.columns) == 12 and fitted.columns[0].site.endswith("#head=1")
    found = fitted.effects(case.fresh)
    (batch,) = model.batches(case.fresh[[4]])
    tables = [path_sources(fitted.patcher.computation, path) for path in PATHS]
    kl, change = path_effects(fitted.patcher, TopMargin(), batch, torch.tensor([[0, 1]]), tables)
    expected = torch.cat([kl.mean(-1), kl.std(-1, correction=0), change.mean(-1), change.std(-1, correction=0)], 1)
    assert np.allclose(found[4], expected[0].numpy(), atol=1e-5)


def test_rows_are_independent_and_state_restores(case):
    model = causalmad.open_model(case.model)
    spec = PathPatching(donors=2)
    fitted = spec.fit(model, case.trusted, seed=1)
    together = fitted(case.fresh)
    assert together.columns[1].name == "paths kl a0.h0->logits"
    reverse = fitted(case.fresh[list(range(11, -1, -1))])
    assert np.allclose(together.values, reverse.values[::-1], rtol=1e-4, atol=1e-5)
    state = fitted.state()
    again = spec.restore(model, State(dict(state.tensors), state.data))
    assert np.array_equal(again(case.fresh).values, together.values)
    assert set(fitted.donor_digests) <= set(case.trusted.digests)


def test_errors(case):
    model = causalmad.open_model(case.model)
    with pytest.raises(HypothesisError, match="no sender"):
        PathPatching("a0.h7->logits").fit(model, case.trusted)
    with pytest.raises(FitError):
        PathPatching(donors=0)
    with pytest.raises(FitError):
        PathPatching(())
    with pytest.raises(HypothesisError, match="not known"):
        PathPatching().fit(causalmad.open_model(toy("mlp").model), toy("mlp").trusted)
