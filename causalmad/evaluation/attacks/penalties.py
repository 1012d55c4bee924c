"""A training penalty that hides one group of inputs from relative Mahalanobis distances."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from causalmad.tasks.hiding import DECAY, LEAST_VARIANCE, MEMORY

_LEAST_WIDTH = 1e-6  # of the normal inputs' scores


@dataclass
class RelativePenalty:
    """How far the anomalous inputs' typical relative distance lies from the normal ones', either way.

    The distance is that of :class:`causalmad.references.RelativeMahalanobis`: to the nearest predicted class, less that
    to the background of all. It can be negative, so that it has no logarithm; the penalty is the squared difference of
    the two groups' means of ``asinh((distance - m) / s)``, with m and s the normal inputs' mean and standard deviation.

    The classes' means and the covariance within are 0.7 of a running estimate (one batch has fewer rows than columns)
    and 0.3 of the batch's own, through which the gradient flows.

    Attributes:
        shrinkage: of the covariance within classes towards its diagonal.
        means: class -> (d,) running mean of the normal rows for which it is predicted.
        shares: class -> running share of the normal rows.
        within: (d, d) running covariance within classes.
        updates: batches so far.
    """

    shrinkage: float = 0.01
    means: dict[int, Tensor] = field(default_factory=dict)
    shares: dict[int, float] = field(default_factory=dict)
    within: Tensor | None = None
    updates: int = 0

    def __call__(self, values: Tensor, anomalous: Tensor, predicted: Tensor) -> Tensor:
        """The penalty () of a batch; its normal rows update the running moments.

        Args:
            values: (n, d) columns of a signature.
            anomalous: (n,) bool.
            predicted: (n,) the class that the model predicts.
        """
        scores = self.scores(values.double(), ~anomalous, predicted)
        usual = scores[~anomalous].detach()
        away = ((scores - usual.mean()) / usual.std().clamp_min(_LEAST_WIDTH)).asinh()
        return (away[anomalous].mean() - away[~anomalous].mean()).square()

    def scores(self, values: Tensor, normal: Tensor, predicted: Tensor) -> Tensor:
        """(n,) relative distances of (n, d) rows, those among them that are ``normal`` being the reference."""
        rows, labels = values[normal], predicted[normal].tolist()
        own = {key: rows[[at == key for at in labels]].mean(0) for key in dict.fromkeys(labels)}
        step = self._step()
        for key, mean in own.items():
            known = self.means.get(key, mean.detach())
            self.means[key] = known.lerp(mean.detach(), step)
        for key in self.means:
            before = self.shares.get(key, 0.0)
            self.shares[key] = before + step * (labels.count(key) / len(labels) - before)
        means = {key: MEMORY * old + (1 - MEMORY) * own.get(key, old) for key, old in self.means.items()}
        off = rows - torch.stack([means[key] for key in labels])
        spread = off.T @ off / len(off)
        self.within = spread.detach() if self.within is None else self.within.lerp(spread.detach(), step)
        within = MEMORY * self.within + (1 - MEMORY) * spread
        variance = within.diagonal().clamp_min(LEAST_VARIANCE)
        shrunk = (1 - self.shrinkage) * within + self.shrinkage * variance.diag()
        centres, weights = torch.stack(list(means.values())), rows.new_tensor(list(self.shares.values()))
        weights = weights / weights.sum()
        middle = weights @ centres
        around = (centres - middle) * weights[:, None].sqrt()
        total = shrunk + (1 - self.shrinkage) * around.T @ around
        scale = variance.detach().sqrt()
        nearest = _distances(values - middle, centres - middle, shrunk, scale).min(1).values
        return nearest - _distances(values - middle, torch.zeros_like(middle)[None], total, scale)[:, 0]

    def _step(self) -> float:
        """The share of a batch in the running moments: their plain average at first, then with a fading memory."""
        self.updates += 1
        return 1 - min(DECAY, 1 - 1 / self.updates)


def _distances(rows: Tensor, centres: Tensor, covariance: Tensor, scale: Tensor) -> Tensor:
    """(n, k) squared Mahalanobis distances, by way of the correlations: units differ in scale by orders of magnitude.

    Args:
        rows: (n, d).
        centres: (k, d).
        covariance: (d, d), solved once for all of them.
        scale: (d,) units.
    """
    both = torch.cat([rows, centres]) / scale
    solved = torch.linalg.solve(covariance / torch.outer(scale, scale), both.T).T
    own, lengths = len(rows), (solved * both).sum(1)
    found: Tensor = lengths[:own, None] - 2 * both[:own] @ solved[own:].T + lengths[None, own:]
    return found
