"""Buffers that no checkpoint holds, since the model computes them itself: whether they are still what they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from causalmad.models.fingerprint import value_digest
from causalmad.models.offloaded import offloaded

_FEW = 1024  # numbers of a buffer that are kept themselves
# What other processors make of the same formula, relative to each number, to the largest, and to the mean size. In a
# table of sines a last digit of a frequency is multiplied by the position: 0.002 at 32,768, and nothing in the mean.
_NUMBER, _LARGEST, _IN_TABLE, _MEAN = 1e-5, 1e-6, 2e-3, 1e-6
_ROUNDING = {str(kind): 2 * torch.finfo(kind).eps for kind in (torch.float64, torch.float32, torch.float16)}
_ROUNDING[str(torch.bfloat16)] = 2 * torch.finfo(torch.bfloat16).eps


def computed(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and value of the buffers that no checkpoint holds, which a fingerprint of the weights leaves out."""
    saved, away = module.state_dict(keep_vars=True), dict(offloaded(module))
    for name, value in module.named_buffers():
        if name not in saved:
            yield name, away[name]() if name in away else value


def record(module: nn.Module) -> dict[str, Any]:
    """Name of such a buffer -> what :func:`first_change` compares, as JSON data."""
    return {name: _kept(value) for name, value in computed(module)}


def first_change(saved: Mapping[str, Any], module: nn.Module) -> str | None:
    """The first of these buffers that is another one than in a :func:`record`, in words; None when none is.

    The same formula may give other last digits on another device, and a buffer may be kept in another precision: so
    numbers need only be near. Those of names that there are at one time only are passed over: that is the code of the
    model, which may be of another version, and no weight.
    """
    now = record(module)
    for name, then in saved.items():
        if name in now and not _near(then, now[name]):
            return f"buffer {name!r}, which no checkpoint holds, differs"
    return None


def _kept(value: Any) -> dict[str, Any]:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.is_meta:
        return {"digest": value_digest(value)}
    numbers = value.detach().cpu().double().flatten().numpy()
    finite = numbers[np.isfinite(numbers)]
    return {
        "type": str(value.dtype),
        "shape": list(value.shape),
        "finite": len(finite),
        "mean": float(finite.sum() / max(len(finite), 1)),
        "size": float(np.abs(finite).sum() / max(len(finite), 1)),
        "values": numbers[np.linspace(0, len(numbers) - 1, min(len(numbers), _FEW)).astype(int)].tolist(),
    }


def _near(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    if "digest" in then or "digest" in now:
        return then == now
    if (then["shape"], then["finite"]) != (now["shape"], now["finite"]):
        return False
    coarse = 0.0 if then["type"] == now["type"] else max(_ROUNDING.get(each["type"], 0.0) for each in (then, now))
    if not abs(now["mean"] - then["mean"]) <= max(_MEAN, coarse) * then["size"]:
        return False
    before, after = (np.array(each["values"], dtype=np.float64) for each in (then, now))
    largest = np.abs(before[np.isfinite(before)]).max(initial=0.0)
    apart = largest * (_IN_TABLE if len(then["shape"]) > 1 else _LARGEST)
    near = np.isclose(after, before, rtol=max(_NUMBER, coarse), atol=apart, equal_nan=True)
    return bool(near.all())
