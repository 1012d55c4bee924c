"""Activations whose axes are not the inputs and their tokens are refused by name, and shortcuts go around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from causalmad import open_model
from causalmad.errors import CausalmadError, SiteError
from causalmad.inputs import Inputs
from causalmad.models.base import OpenModel
from causalmad.signatures import Activations, AttributionPatching, GradientNorms, ResamplingProfile

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 40,
}


def made(name: str) -> OpenModel:
    import transformers as hf

    causal = {**SIZES, "num_key_value_heads": 1, "max_position_embeddings": 32, "pad_token_id": 0}
    short = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "vocab_size": 40}
    streams = {"laurel_rank": 4, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 40}
    streams |= {"altup_num_inputs": 2, "activation_sparsity_pattern": [0.0, 0.0], "num_kv_shared_layers": 0}
    streams |= {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
    torch.manual_seed(0)
    if name == "xlnet":
        module: nn.Module = hf.XLNetForSequenceClassification(hf.XLNetConfig(**short))
    elif name == "longformer":
        wide = {**SIZES, "pad_token_id": 1, "max_position_embeddings": 34}
        module = hf.LongformerForSequenceClassification(hf.LongformerConfig(**wide, attention_window=4))
    elif name == "mixtral":
        module = hf.MixtralForCausalLM(hf.MixtralConfig(**causal, num_local_experts=4))
    else:
        module = hf.Gemma3nForCausalLM(hf.Gemma3nTextConfig(**causal, **streams))
    with torch.no_grad():
        for value in module.parameters():
            value.mul_(3 if value.ndim > 1 else 1)
    return open_model(module)


def rows(count: int, length: int | None = None) -> Inputs:
    draw = torch.Generator().manual_seed(0)
    sizes = [length or 3 + i % 5 for i in range(count)]
    return Inputs.of({"input_ids": [torch.randint(5, 40, (size,), generator=draw) for size in sizes]})


@pytest.mark.parametrize(
    ("name", "signature", "message"),
    [
        ("xlnet", Activations(), r"has 3 rows for 1 inputs"),
        ("xlnet", AttributionPatching(), r"has 7 rows for 12 inputs of 7 tokens: its shape is \(7, 12, 16\)"),
        ("xlnet", GradientNorms(), r"has 7 rows for 12 inputs of 7 tokens"),
        ("longformer", AttributionPatching(), r"has 12 rows for 12 inputs of 7 tokens: its shape is \(12, 8, 16\)"),
        ("longformer", GradientNorms(), r"has 12 rows for 12 inputs of 7 tokens"),
        ("mixtral", Activations("layers"), r"rows for 1 inputs"),
        ("gemma3n", Activations(), r"has 2 rows for 1 inputs"),
    ],
    ids=lambda value: value if isinstance(value, str) and "rows" not in value else "",
)
def test_activations_that_are_no_rows_of_inputs(name: str, signature: Any, message: str) -> None:
    with pytest.raises(SiteError, match=message) as caught:
        signature.fit(made(name), rows(12), seed=0)
    assert "Likely causes" in str(caught.value) and "Try one of" in str(caught.value)


@pytest.mark.parametrize("name", ["xlnet", "longformer", "mixtral", "gemma3n"])
def test_no_error_without_a_name(name: str) -> None:
    model = made(name)
    for signature in (Activations(), ResamplingProfile(donors=2), AttributionPatching(), GradientNorms()):
        try:
            signature.fit(model, rows(12), seed=0)(rows(3))
        except CausalmadError:
            continue


@pytest.mark.parametrize("length", [None, 6])
def test_several_streams_beside_each_other(length: int | None) -> None:
    model, inputs = made("gemma3n"), rows(12, length)
    profile = ResamplingProfile(donors=2).fit(model, inputs, seed=0)
    each = np.concatenate([profile(inputs[[row]]).values for row in range(4)])
    np.testing.assert_allclose(profile(inputs[:4]).values, each, rtol=1e-3, atol=1e-4)
