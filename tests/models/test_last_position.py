"""Gradients from runs of the last position alone are those of whole runs, and where they are not, runs are whole."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from causalmad import open_model
from causalmad.models.base import Run
from causalmad.models.last_position import LastPosition
from causalmad.sites import Place
from causalmad.targets import TopMargin

Models = Callable[[str], nn.Module]
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
FAMILIES = ["gpt2", "neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"]


def places_of(model: Any) -> list[Place]:
    sites = model.sites(["embedding", "residual", "heads", "mlps", "attentions", "neurons"])
    return list(dict.fromkeys(site.place for site in sites))


def same(found: Run, whole: Run) -> None:
    torch.testing.assert_close(found.logits, whole.logits, **CLOSE)
    for place, slope in whole.grads.items():
        torch.testing.assert_close(found.grads[place], slope, **CLOSE, msg=str(place))
        mine, theirs = (run.values[place] * (slope != 0) for run in (found, whole))
        torch.testing.assert_close(mine, theirs, **CLOSE, msg=str(place))


def test_a_relative_that_lacks_a_norm(prompts: Any) -> None:
    import transformers as hf

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = open_model(hf.CohereForCausalLM(hf.CohereConfig(**sizes, vocab_size=50, pad_token_id=0)))
    batch, places, runs = next(model.batches(model.inputs(prompts))), places_of(model), LastPosition(model)
    whole = model.run(batch, read=places, target=TopMargin())
    for _ in range(2):
        same(runs.run(batch, read=places, target=TopMargin()), whole)


class Widths:
    """How many positions the last MLP was given, run by run."""

    def __init__(self, module: nn.Module, path: str) -> None:
        self.seen: list[int] = []
        self.handle = module.get_submodule(path).register_forward_hook(
            lambda _, args, result: self.seen.append(args[0].shape[1])
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_a_whole_run(name: str, model_of: Models, prompts: Any) -> None:
    module = deepcopy(model_of(name))
    model = open_model(module)
    batch = next(model.batches(model.inputs(prompts)))
    places, runs = places_of(model), LastPosition(model)
    whole = model.run(batch, read=places, target=TopMargin())
    widths = Widths(module, model.sites("mlps")[-1].path)
    for _ in range(2):
        same(runs.run(batch, read=places, target=TopMargin()), whole)
    edit = {places[0]: lambda value: value * 1.5}
    edited = model.run(batch, read=places, target=TopMargin(), edits=edit)
    widths.seen.clear()
    for _ in range(2):
        same(runs.run(batch, read=places, target=TopMargin(), edits=edit), edited)
    full = batch.main.shape[1]
    assert widths.seen == [1, full, 1], "the first run at these places is made whole as well"


def test_an_edit_in_the_last_block_is_made_at_every_position(model_of: Models, prompts: Any) -> None:
    module = deepcopy(model_of("gpt2"))
    model = open_model(module)
    batch = next(model.batches(model.inputs(prompts)))
    places, place = places_of(model), Place("transformer.h.1.attn.c_proj", "input")
    edit = {place: torch.ones_like}
    runs, widths = LastPosition(model), Widths(module, "transformer.h.1.mlp")
    for _ in range(2):
        same(
            runs.run(batch, read=places, target=TopMargin(), edits=edit),
            model.run(batch, read=places, target=TopMargin(), edits=edit),
        )
    assert set(widths.seen) == {batch.main.shape[1]}


@pytest.mark.parametrize("how", ["mixing", "raising", "left over", "right", "nnsight", "standing"])
def test_what_needs_all_positions_has_them(how: str, model_of: Models, prompts: Any) -> None:
    module = deepcopy(model_of("llama"))
    mlp = module.model.layers[1].mlp
    own = mlp.forward

    def mixing(value: Tensor) -> Tensor:
        return own(value) + value.mean(1, keepdim=True)

    def raising(value: Tensor) -> Tensor:
        if value.shape[1] == 1:
            raise ValueError("a single token")
        return own(value)

    def final(value: Tensor) -> Tensor:
        return norm(value) + value.cumsum(1)

    if how in ("mixing", "raising"):
        mlp.forward = {"mixing": mixing, "raising": raising}[how]
    if how == "left over":  # a later part reads what was not run
        norm = module.model.norm.forward
        module.model.norm.forward = final
    options: dict[str, Any] = {"side": "right"} if how == "right" else {"engine": "nnsight"} if how == "nnsight" else {}
    model = open_model(module, **options)
    if how == "standing":
        model = replace(model, standing=lambda batch: {Place("model.layers.1.mlp"): lambda value: value + value.mean()})
    batch = next(model.batches(model.inputs(prompts)))
    places, runs = [site.place for site in model.sites(["heads", "mlps"])], LastPosition(model)
    places = list(dict.fromkeys(places))
    whole = model.run(batch, read=places, target=TopMargin())
    for _ in range(2):
        same(runs.run(batch, read=places, target=TopMargin()), whole)


def test_values_that_depend_on_how_many_positions_there_are_are_noticed(model_of: Models, prompts: Any) -> None:
    """Though logits and slopes are the same: the last norm takes away what is added to all features alike."""
    module = deepcopy(model_of("gpt2"))
    mlp = module.transformer.h[1].mlp
    own = mlp.forward
    mlp.forward = lambda value: own(value) + value.shape[1]
    model = open_model(module)
    batch = next(model.batches(model.inputs(prompts)))
    places, runs = [Place("transformer.h.1.mlp")], LastPosition(model)
    whole = model.run(batch, read=places, target=TopMargin())
    for _ in range(2):
        same(runs.run(batch, read=places, target=TopMargin()), whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype, model_of: Models, prompts: Any) -> None:
    module = deepcopy(model_of("gpt2")).to(dtype)
    model = open_model(module)
    batch = next(model.batches(model.inputs(prompts)))
    places, runs = places_of(model), LastPosition(model)
    whole = model.run(batch, read=places, target=TopMargin())
    widths = Widths(module, "transformer.h.1.mlp")
    runs.run(batch, read=places, target=TopMargin())
    found = runs.run(batch, read=places, target=TopMargin())
    assert widths.seen[-1] == 1
    for place, slope in whole.grads.items():
        gap = (found.grads[place] - slope).abs().amax() / slope.abs().amax()
        assert gap < (1e-9 if dtype == torch.float64 else 0.05), place


def test_nothing_is_left_behind(model_of: Models, prompts: Any) -> None:
    module = deepcopy(model_of("gpt2")).train()
    model = open_model(module)
    batch = next(model.batches(model.inputs(prompts)))
    runs = LastPosition(model)

    def failing(logits: Tensor) -> Tensor:
        raise RuntimeError("a target of one's own")

    for target in (TopMargin(), failing):
        try:
            runs.run(batch, read=places_of(model), target=target)
        except Exception as error:
            assert target is failing, error
    for part in module.modules():
        assert not part._forward_hooks and not part._forward_pre_hooks and "forward" not in part.__dict__
    assert all(value.requires_grad for value in module.parameters()) and module.training
