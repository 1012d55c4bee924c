"""What a model and the process look like, so that traces of a visit show."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from causalmad.testing.law import LawBroken

LAW = "nothing is left on the model or in the process"


class ToyFailure(RuntimeError):  # noqa: N818
    """What :func:`failing` makes a model raise."""


@contextmanager
def untouched(model: nn.Module, when: str) -> Iterator[None]:
    """A block after which the model and the global random generators are as before, to the last bit.

    Args:
        model: the model.
        when: what went before, for the message: "after a fit".

    Raises:
        LawBroken: otherwise, with everything that differs.
    """
    before = look(model)
    try:
        yield
    finally:
        after = look(model)
        differing = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        if differing:
            found = "; ".join(f"{key}: {_short(before.get(key))} -> {_short(after.get(key))}" for key in differing[:5])
            raise LawBroken(LAW, f"all as it was {when}", f"{len(differing)} differences: {found}")


@contextmanager
def failing(model: nn.Module, after: int) -> Iterator[None]:
    """A block in which the model raises :class:`ToyFailure` in its run number ``after``, counted from 0, and later."""
    runs = 0

    def fail(*_: Any) -> None:
        nonlocal runs
        runs += 1
        if runs > after:
            raise ToyFailure("the toy broke down")

    *_, last = (part for part in model.modules() if next(part.children(), None) is None)
    handle = last.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


def look(model: nn.Module) -> dict[str, object]:
    """Everything that a visit might change, by name."""
    seen: dict[str, object] = {
        "torch's generator": _bytes(torch.get_rng_state()),
        "numpy's generator": repr(np.random.get_state()),  # noqa: NPY002
        "random's generator": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "fast kernels of attention": torch.backends.mha.get_fastpath_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }
    for name, part in model.named_modules():
        for key, value in part.__dict__.items():
            # Hooks and children are kept in dictionaries, of which the content counts.
            content = [(k, id(v)) for k, v in value.items()] if isinstance(value, dict) else None
            seen[f"{name}.__dict__[{key!r}]"] = content if content is not None else (id(value), _plain(value))
        seen[f"{name}.__class__"] = type(part)
    for name, parameter in model.named_parameters():
        seen[f"{name}.requires_grad"] = parameter.requires_grad
        seen[f"{name}.grad"] = None if parameter.grad is None else (id(parameter.grad), _bytes(parameter.grad))
        seen[f"{name} hooks"] = list(getattr(parameter, "_backward_hooks", None) or {})
        seen[f"{name} values"] = _bytes(parameter)
    for name, buffer in model.named_buffers():
        seen[f"{name} values"] = _bytes(buffer)
    return seen


def _plain(value: object) -> object:
    return value if isinstance(value, (bool, int, float, str, type(None))) else None


def _bytes(value: Tensor) -> bytes:
    """A digest of the content: weights are not kept a second time."""
    flat = value.detach().cpu().contiguous().reshape(-1)
    return hashlib.blake2b(flat.view(torch.uint8).numpy().tobytes()).digest()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:60]}... ({len(text)} characters)"
