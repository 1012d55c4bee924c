"""Attention patterns: rows of what transformers returns, sorted, whoever else is in the batch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from causalmad import open_model
from causalmad.errors import FitError, InputsError, SiteError
from causalmad.inputs import Inputs
from causalmad.signatures.attention_patterns import AttentionPatterns
from causalmad.signatures.base import State
from causalmad.testing.toys import toy
from tests.twins import attention_patterns as twin

TOYS = ("gpt2", "llama", "neox", "bert")


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("position", [None, 1, -2])
def test_equals_the_twin(name, position):
    made = toy(name, 12, 5)
    spec = AttentionPatterns(top=4, position=position, places=True)
    fitted = spec.fit(open_model(made.model), made.trusted[made.trusted.lengths < 7])
    found = fitted(made.fresh).values
    eager = copy.deepcopy(made.model).eval()
    eager.set_attn_implementation("eager")
    at = (0 if name == "bert" else -1) if position is None else position
    longest = max(size for size in made.trusted.lengths if size < 7)
    assert made.fresh.lengths.max() > longest  # so that something lies beyond
    for row, ids in zip(found, made.fresh.fields["input_ids"], strict=True):
        assert np.allclose(row, twin.numbers(eager, ids, at, 4, longest), atol=1e-5)


@pytest.mark.parametrize("name", TOYS)
def test_engines_and_padding_agree_and_the_state_restores(name):
    made = toy(name, 12, 5)
    spec = AttentionPatterns(places=True)
    fitted = spec.fit(open_model(made.model), made.trusted)
    whole = fitted(made.fresh).values
    traced = spec.fit(open_model(made.model, engine="nnsight"), made.trusted)(made.fresh).values
    assert np.allclose(whole, traced, atol=1e-6)
    state = fitted.state()
    for options in ({"side": "right"}, {"side": "right", "batch_size": 1}):
        again = spec.restore(open_model(made.model, **options), State(dict(state.tensors), state.data))
        assert again.columns == fitted.columns
        assert np.allclose(whole, again(made.fresh).values, atol=1e-6)


def test_sorted_rows_do_not_see_where_tokens_stand():
    """Without positions, a causal model's last token attends to the others wherever they stand."""
    made = toy("gpt2", 12, 5)
    with torch.no_grad():
        made.model.transformer.wpe.weight.zero_()
    made.model.transformer.h = made.model.transformer.h[:1]
    fitted = AttentionPatterns(top=5, places=True).fit(open_model(made.model), made.trusted)
    one, other = torch.tensor([3, 4, 5, 6, 7]), torch.tensor([6, 3, 5, 4, 7])
    found = fitted(Inputs.of({"input_ids": [one, other]})).values
    blocks = np.array([column.block for column in fitted.columns])
    for block in ("attention by rank", "attention entropy"):
        assert np.allclose(*found[:, blocks == block], atol=1e-6)
    assert np.abs(np.subtract(*found[:, blocks == "attention by place"])).max() > 1e-3


def test_inputs_that_are_no_tokens(model_of, images):
    model = model_of("vit")
    opened = open_model(model)
    inputs = opened.inputs(images)
    fitted = AttentionPatterns(top=2, places=True).fit(opened, inputs)
    found = fitted(inputs).values.reshape(4, 8, -1)  # two layers of four heads
    assert found.shape[-1] == 2 + 1 + 5 + 1
    assert np.allclose(found[..., 3:].sum(-1), 1, atol=1e-5)
    assert (found[..., 0] >= found[..., 1]).all() and np.allclose(found[..., 3:].max(-1), found[..., 0])
    with pytest.raises(FitError, match="position=9"):
        AttentionPatterns(position=9).fit(opened, inputs)(inputs)


def test_columns_name_heads_where_their_output_is():
    made = toy("gpt2", 6, 2)
    fitted = AttentionPatterns(top=1).fit(open_model(made.model), made.trusted)
    assert fitted.columns[0].name == "attention transformer.h.0.attn.0 rank 1"
    assert fitted.columns[-1].site == "transformer.h.1.attn.c_proj:input#head=1"
    assert len(fitted.columns) == 2 * 2 * 2
    assert fitted(made.fresh[:0]).values.shape == (0, 8)


def test_errors():
    with pytest.raises(FitError):
        AttentionPatterns(top=0)
    for name in ("mlp", "conv"):
        made = toy(name, 4, 1)
        with pytest.raises(SiteError, match="no attention"):
            AttentionPatterns().fit(open_model(made.model), made.trusted)
    made = toy("gpt2", 6, 2)
    with pytest.raises(FitError, match="no trusted"):
        AttentionPatterns().fit(open_model(made.model), made.trusted[:0])
    with pytest.raises(InputsError):
        AttentionPatterns(position=30).fit(open_model(made.model), made.trusted)(made.fresh)
