"""Compiled models give what they gave before they were compiled, and stay compiled."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from causalmad.models import open_model
from causalmad.models.shortcuts import Shortcuts
from causalmad.sites import Place
from causalmad.targets import TopMargin

CLOSE = {"atol": 1e-6, "rtol": 1e-6}


def whole(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


def in_place(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


def by_part(module: nn.Module) -> nn.Module:
    for part in module.transformer.h:
        part.compile(backend="eager")
    return module


@pytest.mark.parametrize("compiled", [whole, in_place, by_part])
def test_hooks_reach_into_compiled_models(compiled: Any, model_of: Callable[[str], nn.Module], prompts: Any) -> None:
    plain = open_model(deepcopy(model_of("gpt2")))
    batch = next(plain.batches(plain.inputs(prompts)))
    module = compiled(deepcopy(model_of("gpt2")))
    with torch.no_grad():
        module(batch.main)  # compiled before any hook is there
    calls = [part._compiled_call_impl for part in module.modules()]
    model = open_model(module)
    places = [site.place for site in plain.sites(["residual", "mlps"])]

    def edit(value: Tensor) -> Tensor:
        return value * 0.5

    for read in ({"read": places, "target": TopMargin()}, {"read": places, "edits": {places[0]: edit}}):
        one, two = plain.run(batch, **read), model.run(batch, **read)
        torch.testing.assert_close(one.logits, two.logits, **CLOSE)
        torch.testing.assert_close(dict(one.values), dict(two.values), **CLOSE)
        torch.testing.assert_close(dict(one.grads), dict(two.grads), **CLOSE)
    shortcuts = Shortcuts(model, places)
    found = shortcuts.logits(shortcuts.clean(batch), torch.arange(len(batch)), lambda b: (b, {places[1]: edit}))
    torch.testing.assert_close(found, plain.logits(batch, {places[1]: edit}), atol=1e-5, rtol=1e-5)
    assert shortcuts.usable
    assert [part._compiled_call_impl for part in module.modules()] == calls


def test_a_compiled_part_inside_is_reached_by_its_path() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    plain = open_model(nn.Sequential(nn.Linear(4, 4), deepcopy(inner)))
    module = nn.Sequential(deepcopy(plain.module[0]), torch.compile(inner, backend="eager"))
    x = torch.randn(3, 4)
    with torch.no_grad():
        module(x)
    model = open_model(module)
    batch = next(model.batches(model.inputs(x)))
    edited = model.logits(batch, {Place("1._orig_mod.1"): lambda value: value + 1})
    torch.testing.assert_close(edited, plain.logits(batch, {Place("1.1"): lambda value: value + 1}), **CLOSE)
