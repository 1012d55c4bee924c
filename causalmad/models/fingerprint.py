"""Fingerprints: which weights a result was computed with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

from causalmad.models.offloaded import offloaded


def parameter_digests(module: nn.Module) -> dict[str, str]:
    """Name of a parameter or saved buffer -> hash of its shape, type and values, in the module's order.

    Values that accelerate keeps in memory or on disk until a layer runs are read from there, one at a time.
    """
    away = dict(offloaded(module))
    known = module.state_dict(keep_vars=True)
    return {name: value_digest(away[name]() if name in away else value) for name, value in known.items()}


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
