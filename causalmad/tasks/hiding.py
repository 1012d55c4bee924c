"""A training penalty that hides one group of inputs from Mahalanobis distances on activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Watched: TypeAlias = Literal["activations", "signatures"]

SHRINKAGE = 0.05
MEMORY = 0.7
DECAY = 0.98
LEAST_VARIANCE = 1e-5  # a dead unit has none
LEAST_SHARE = 1e-3  # of a part of the input in an answer


@dataclass
class Moments:
    """First (width,) and second (width, width) moments of rows of activations."""

    first: Tensor
    second: Tensor
    updates: int = 0

    @classmethod
    def zero(cls, width: int) -> Moments:
        """Moments of nothing yet."""
        return cls(torch.zeros(width), torch.zeros(width, width))

    @classmethod
    def of(cls, rows: Tensor) -> Moments:
        """The moments of (n, width) rows."""
        return cls(rows.mean(0), rows.T @ rows / len(rows))

    def follow(self, other: Moments) -> None:
        """Moves a step towards other moments: their plain average at first, then with a fading memory."""
        self.updates += 1
        share = 1 - min(DECAY, 1 - 1 / self.updates)
        self.first.lerp_(other.first, share)
        self.second.lerp_(other.second, share)


@dataclass
class MahalanobisPenalty:
    """How far the anomalous activations' typical Mahalanobis distance lies from the normal ones', either way.

    For each layer, and for all layers joined, the squared difference of the two groups' mean log distances. The
    distance is the one that the activation baseline uses: standardised columns and a shrunk covariance of normal
    activations. Being too typical is penalised like being too odd, so that a two-sided score finds no more.

    The covariance is 0.7 of a running estimate (one batch has fewer rows than columns) and 0.3 of the batch's own,
    through which the gradient flows: the network may widen the normal inputs' spread as well as move the others.

    Attributes:
        shrinkage: of the covariance. What is hidden from a distance that shrinks more than the detector's does shows
            in the detector's: streams of a transformer need no more than Ledoit and Wolf's estimate gives them.
        layers: running moments of each layer, and of all joined.
    """

    shrinkage: float = SHRINKAGE
    layers: list[Moments] = field(default_factory=list)

    def __call__(self, activations: Sequence[Tensor], anomalous: Tensor) -> Tensor:
        """The penalty () of a batch; its normal rows update the running moments.

        Args:
            activations: (n, width) of each layer.
            anomalous: (n,) bool.
        """
        joined = [*activations, torch.cat(list(activations), 1)]
        if not self.layers:
            self.layers = [Moments.zero(values.shape[1]) for values in joined]
        gaps = []
        for running, values in zip(self.layers, joined):
            own = Moments.of(values.detach()[~anomalous])
            running.follow(own)
            logs = squared_distances(values, ~anomalous, running, own, self.shrinkage).log()
            gaps.append(logs[anomalous].mean() - logs[~anomalous].mean())
        return torch.stack(gaps).square().sum()


def watched_features(kind: Watched, layers: Sequence[Tensor], logits: Tensor, parts: Tensor) -> list[Tensor]:
    """What a detector would look at, as (n, width) tensors through which gradients flow.

    Args:
        kind: ``activations``, the layers as they are; or ``signatures``, the share of each part of the input in the
            answer: the logarithm of the summed size of gradient times input, for the margin of the top logit.
        layers: (n, width) activations of each layer.
        logits: (n, classes).
        parts: (n, parts, ...) the input (or its embedding) cut into parts; the logits were computed from it, and it
            requires gradients.
    """
    if kind == "activations":
        return list(layers)
    others = logits.scatter(-1, logits.argmax(-1, keepdim=True), -torch.inf).logsumexp(-1)
    margin = (logits.max(-1).values - others).sum()
    (slope,) = torch.autograd.grad(margin, parts, create_graph=True)
    sizes = (slope * parts).flatten(2).abs().sum(2)
    return [(sizes / sizes.sum(1, keepdim=True) + LEAST_SHARE).log()]


def squared_distances(
    values: Tensor, normal: Tensor, running: Moments, own: Moments, shrinkage: float = SHRINKAGE
) -> Tensor:
    """(n,) squared Mahalanobis distances, differentiable in ``values`` everywhere they enter.

    The gradient is exact without differentiating a matrix inverse: for q = z' inv(C) z and v = inv(C) z,
    dq = 2 v' dz - v' dC v, and v' dC v needs products with the rows of the batch only.

    Args:
        values: (n, width) activations.
        normal: (n,) bool, the rows that belong to the reference.
        running: moments of earlier reference rows.
        own: moments of the reference rows in ``values``.
        shrinkage: of the covariance towards its diagonal.
    """
    with torch.no_grad():
        centre = MEMORY * running.first + (1 - MEMORY) * own.first
        covariance = MEMORY * running.second + (1 - MEMORY) * own.second - torch.outer(centre, centre)
        variance = covariance.diagonal().clamp_min(LEAST_VARIANCE)
        shrunk = (1 - shrinkage) * covariance + shrinkage * variance.diag()
        solved = (values - centre) @ _inverse(shrunk, variance.sqrt())
    off = values - centre
    rows = off[normal]
    moved = (1 - MEMORY) * rows.mean(0)  # the batch's own share in the centre
    value = (solved * off).sum(1)
    spread = (1 - shrinkage) * (solved @ rows.T).square().mean(1) + shrinkage * solved**2 @ rows.square().mean(0)
    change = 2 * (value - solved @ moved) - (1 - MEMORY) * spread
    distances: Tensor = value.detach() + change - change.detach()
    return distances.clamp_min(1e-3)


def _inverse(matrix: Tensor, scale: Tensor) -> Tensor:
    """Inverse of a covariance, by way of the correlations: units differ in scale by orders of magnitude."""
    scales = torch.outer(scale, scale)
    correlations = matrix / scales
    factor, failed = torch.linalg.cholesky_ex(correlations)
    inverse: Tensor = torch.cholesky_inverse(factor)
    if failed.item():  # rounding: a unit that is almost dead
        inverse = torch.linalg.pinv(correlations.double(), hermitian=True).to(matrix.dtype)
    return inverse / scales
