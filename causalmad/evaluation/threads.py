"""How many threads a small network gets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

SMALL = 1_000_000  # parameters


@contextmanager
def fitting_threads(module: nn.Module) -> Iterator[None]:
    """One thread of torch for a network of under a million parameters, afterwards as many as before.

    Its operations are so short that threads mostly wait for each other; on a busy machine that took ten times as long.
    """
    before = torch.get_num_threads()
    small = sum(parameter.numel() for parameter in module.parameters()) < SMALL
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
