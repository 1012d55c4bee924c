"""When two runs gave the same numbers."""

from __future__ import annotations

import torch
from torch import Tensor

# Of the largest number: how far the same row may come out from itself in a batch of another shape.
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-4}
HALF = 0.1


def alike(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors are the same but for what the shapes of batches do to rounding.

    Args:
        found: what one run gave.
        wanted: what the other one gave.
        dtype: in which the model computed them.
    """
    if found.shape != wanted.shape:
        return False
    gap = (found.double() - wanted.double()).abs().amax()
    return bool(gap <= CLOSE.get(dtype, HALF) * wanted.double().abs().amax())
