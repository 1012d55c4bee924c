"""Rows of attention in plain loops, from what transformers returns for one input without padding."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def numbers(model: Any, ids: Tensor, position: int, top: int, longest: int) -> list[float]:
    """For every head: the ``top`` largest weights, the entropy, and the weights by place counted from the end.

    Args:
        model: in eval mode, with ``attn_implementation="eager"``.
        ids: (tokens,).
        position: whose row.
        top: how many weights.
        longest: places; what is further is added up.
    """
    found: list[float] = []
    with torch.no_grad():
        patterns = model(ids[None], output_attentions=True).attentions
    for pattern in patterns:
        for head in range(pattern.shape[1]):
            row = [float(weight) for weight in pattern[0, head, position]]
            ranked = sorted(row, reverse=True) + [0.0] * top
            entropy = -sum(weight * math.log(weight) for weight in row if weight > 0)
            back = row[::-1] + [0.0] * longest
            found += [*ranked[:top], entropy, *back[:longest], sum(back[longest:])]
    return found
