"""Fingerprints: which weights a result was computed with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

from causalmad.errors import ModelError
from causalmad.models.offloaded import offloaded

_GLANCED = 64  # values of a parameter


def parameter_digests(module: nn.Module) -> dict[str, str]:
    """Name of a parameter or saved buffer -> hash of its shape, type and values, in the module's order.

    Values that accelerate keeps in memory or on disk until a layer runs are read from there, one at a time.
    """
    away = dict(offloaded(module))
    known = module.state_dict(keep_vars=True)
    return {name: value_digest(away[name]() if name in away else value) for name, value in known.items()}


def glance(module: nn.Module) -> str:
    """A hash of some values of every parameter: quick, and another one after a step of training or `.half()`.

    Values that are elsewhere (meta, offloaded) play no part.
    """
    kinds, some = [], []
    for name, value in module.named_parameters():
        kinds.append(f"{name}:{value.dtype}:{tuple(value.shape)}")
        if value.device.type != "meta" and value.numel():
            flat = value.detach().reshape(-1)
            some.append(flat[:: max(flat.numel() // _GLANCED, 1)][:_GLANCED].cpu().double())
    numbers = torch.cat(some) if some else torch.empty(0)
    return hashlib.blake2b("\n".join(kinds).encode() + numbers.numpy().tobytes(), digest_size=16).hexdigest()


def require_glance(module: nn.Module, known: str) -> None:
    """The weights are those that an earlier :func:`glance` saw.

    Args:
        module: the model.
        known: what the glance gave; empty for no question.

    Raises:
        ModelError: when they are others.
    """
    if known and known != glance(module):
        raise ModelError(
            f"the weights of {type(module).__name__} have changed since the detector was fitted",
            needed="the very weights that it was fitted on",
            causes=["a step of training", "adapters that were merged", "another precision, as after .half()"],
            tries=["fit again", "fit on copy.deepcopy(model)"],
        )


def digest(parts: Mapping[str, str]) -> str:
    """One hash of all parameters' hashes, names included."""
    whole = hashlib.blake2b(digest_size=16)
    for name, part in parts.items():
        whole.update(f"{name}={part}\n".encode())
    return whole.hexdigest()


def first_difference(saved: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """What differs first between two models, in words; None when nothing does."""
    for name, part in saved.items():
        if name not in now:
            return f"parameter {name!r} is missing"
        if now[name] != part:
            return f"parameter {name!r} differs"
    extra = next((name for name in now if name not in saved), None)
    return f"parameter {extra!r} is new" if extra else None


def value_digest(value: object) -> str:
    """Hash of what a module's state holds: a tensor, packed tensors of a quantised module, or plain values."""
    whole = hashlib.blake2b(digest_size=16)
    if isinstance(value, (tuple, list)):
        whole.update(f"{type(value).__name__}:{','.join(map(value_digest, value))}".encode())
        return whole.hexdigest()
    if not isinstance(value, torch.Tensor):
        whole.update(repr(value).encode())
        return whole.hexdigest()
    if value.is_quantized:  # its numbers, and the type that says how they are kept
        whole.update(f"{value.dtype}:{value.qscheme()}:".encode())
        value = value.dequantize()
    whole.update(f"{value.dtype}:{tuple(value.shape)}:".encode())
    if value.device.type != "meta":
        flat = value.detach().cpu().contiguous().reshape(-1)
        whole.update(flat.view(torch.uint8).numpy().data)
    return whole.hexdigest()
