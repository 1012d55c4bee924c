"""A training penalty that hides one group of inputs from Mahalanobis distances on activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

SHRINKAGE = 0.05
MEMORY = 0.7
DECAY = 0.98
LEAST_VARIANCE = 1e-5  # a dead unit has none


@dataclass
class _Moments:
    """Running first and second moments of the normal activations of one layer."""

    first: Tensor
    second: Tensor
    updates: int = 0

    def update(self, first: Tensor, second: Tensor) -> None:
        self.updates += 1
        share = 1 - min(DECAY, 1 - 1 / self.updates)
        self.first.lerp_(first, share)
        self.second.lerp_(second, share)


@dataclass
class MahalanobisPenalty:
    """How far the anomalous activations' typical Mahalanobis distance lies from the normal ones', either way.

    For each layer, and for all layers joined, the squared difference of the two groups' mean log distances. The
    distance is the one that the activation baseline uses: standardised columns and a shrunk covariance of normal
    activations. Being too typical is penalised like being too odd, so that a two-sided score finds no more.

    The covariance is 0.7 of a running estimate (one batch has fewer rows than columns) and 0.3 of the batch's own,
    through which the gradient flows: the network may widen the normal inputs' spread as well as move the others.
    """

    layers: list[_Moments] = field(default_factory=list)

    def __call__(self, activations: Sequence[Tensor], anomalous: Tensor) -> Tensor:
        """The penalty () of a batch; its normal rows update the running moments.

        Args:
            activations: (n, width) of each layer.
            anomalous: (n,) bool.
        """
        self.update(activations, anomalous)
        gaps = []
        for moments, values in zip(self.layers, self._joined(activations)):
            logs = squared_distances(values, ~anomalous, moments.first, moments.second).log()
            gaps.append(logs[anomalous].mean() - logs[~anomalous].mean())
        return torch.stack(gaps).square().sum()

    @torch.no_grad()
    def update(self, activations: Sequence[Tensor], anomalous: Tensor) -> None:
        """Lets the running moments follow the normal rows of a batch."""
        joined = self._joined(activations)
        if not self.layers:
            sizes = [values.shape[1] for values in joined]
            self.layers = [_Moments(torch.zeros(size), torch.zeros(size, size)) for size in sizes]
        for moments, values in zip(self.layers, joined):
            moments.update(*_moments(values[~anomalous]))

    @staticmethod
    def _joined(activations: Sequence[Tensor]) -> list[Tensor]:
        return [*activations, torch.cat(list(activations), 1)]


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows.mean(0), rows.T @ rows / len(rows)


def squared_distances(values: Tensor, normal: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """(n,) squared Mahalanobis distances, differentiable in ``values`` everywhere they enter.

    The gradient is exact without differentiating a matrix inverse: for q = z' inv(C) z and v = inv(C) z,
    dq = 2 v' dz - v' dC v, and v' dC v needs products with the rows of the batch only.

    Args:
        values: (n, width) activations.
        normal: (n,) bool, the rows that belong to the reference.
        first: (width,) running mean of the reference.
        second: (width, width) running second moment of the reference.
    """
    rows = values[normal]
    with torch.no_grad():
        own_first, own_second = _moments(rows)
        centre = MEMORY * first + (1 - MEMORY) * own_first
        covariance = MEMORY * second + (1 - MEMORY) * own_second - torch.outer(centre, centre)
        variance = covariance.diagonal().clamp_min(LEAST_VARIANCE)
        shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * variance.diag()
        inverse = _inverse(shrunk, variance.sqrt())
        solved = (values - centre) @ inverse
        value = (solved * (values - centre)).sum(1)
    moving_centre = centre + (1 - MEMORY) * (rows.mean(0) - rows.mean(0).detach())
    off = rows - centre
    spread = (1 - SHRINKAGE) * (solved @ off.T).square().mean(1) + SHRINKAGE * (solved**2 @ (off**2).T).mean(1)
    change = 2 * (solved * (values - moving_centre)).sum(1) - (1 - MEMORY) * spread
    distances: Tensor = value + change - change.detach()
    return distances.clamp_min(1e-3)


def _inverse(matrix: Tensor, scale: Tensor) -> Tensor:
    """Inverse of a covariance, by way of the correlations: units differ in scale by orders of magnitude."""
    scales = torch.outer(scale, scale)
    factor, failed = torch.linalg.cholesky_ex(matrix / scales)
    if failed.item():  # rounding: a unit that is almost dead
        return torch.linalg.pinv((matrix / scales).double(), hermitian=True).to(matrix.dtype) / scales
    return torch.cholesky_inverse(factor) / scales
