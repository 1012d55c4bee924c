"""Interventions: pure edits ``edit(activation, donor) -> activation`` of the same shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Edit: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def keep(activation: Tensor, donor: Tensor) -> Tensor:
    """The activation itself: the identity, against which every other edit is measured."""
    return activation


def zero(activation: Tensor, donor: Tensor) -> Tensor:
    """Zero ablation."""
    return torch.zeros_like(activation)


def mean(activation: Tensor, donor: Tensor) -> Tensor:
    """Mean ablation: the mean over the donors, (donors, ...) -> (1, ...), for every row."""
    return donor.mean(0, keepdim=True).to(activation.dtype).expand_as(activation)


def interchange(activation: Tensor, donor: Tensor) -> Tensor:
    """The donor's activation in place of the base's, row by row (Geiger et al. 2021, arXiv 2106.02997)."""
    return donor.to(activation.dtype).expand_as(activation)


# Resample ablation (Chan et al. 2022) is the same edit; what differs is how donors are drawn.
resample = interchange


def add(activation: Tensor, donor: Tensor) -> Tensor:
    """The donor added to the activation: steering by a vector."""
    return activation + donor


def interpolate(activation: Tensor, donor: Tensor, share: float = 0.5) -> Tensor:
    """A point on the line from the activation (``share`` 0) to the donor (``share`` 1)."""
    return activation + share * (donor - activation) if share else activation


def project_out(activation: Tensor, donor: Tensor) -> Tensor:
    """The activation without its part along the directions in ``donor``, (directions, features) or (features,)."""
    basis: Tensor = torch.linalg.qr(torch.atleast_2d(donor).T.to(activation.dtype)).Q
    return activation - (activation @ basis) @ basis.T
