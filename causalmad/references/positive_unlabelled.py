"""A classifier of normal against anomalous rows from trusted rows and an unlabelled pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.config import require_options
from causalmad.errors import InputsError, SpecError
from causalmad.references.base import as_rows, resolution
from causalmad.references.covariance import Spread
from causalmad.references.pool import trusted_and_pool
from causalmad.references.state import frozen, restored
from causalmad.references.whitening import spread_of

Array = npt.NDArray[np.float64]

_RATE = 2e-2


@dataclass(frozen=True)
class PositiveUnlabelled:
    """A classifier trained on trusted rows as normal and untrusted rows as a mixture (nnPU; offline).

    With g the classifier (positive = normal), l(t) = 1 / (1 + exp(t)) the sigmoid loss, P the trusted rows, U the
    untrusted ones and pi the share of normal rows in U, it minimises the non-negative risk

        pi mean_P l(g) + max(0, mean_U l(-g) - pi mean_P l(-g))

    plus an L2 penalty on the weights, by Adam on all rows. The second part estimates the risk on anomalous rows, which
    is not below zero; where the estimate is, the classifier overfits, and the step goes against it, as in the paper.
    The anomaly score is -g. It learns whatever tells the pool from the trusted rows: a benign shift is learnt as well.

    Args:
        normal_share: pi, which the data do not tell without further assumptions. 0.8 suits pools with up to some tens
            of per cent of anomalies: where it is below the true share, usual rows are pushed across the boundary,
            which the score (a ranking) bears better than the reverse.
        hidden: width of a hidden layer (ReLU), or 0 for a linear classifier. A linear one sees only that the pool is
            shifted, not that it is wider.
        penalty: weight of the sum of the squared weights.
        steps: training steps.

    References:
        Kiryo, Niu, du Plessis, Sugiyama 2017, arXiv 1703.00593.
    """

    normal_share: float = 0.8
    hidden: int = 0
    penalty: float = 0.01
    steps: int = 300

    def __post_init__(self) -> None:
        require_options(self)
        if not 0 < self.normal_share < 1:
            raise SpecError(f"normal_share={self.normal_share!r}", needed="a share between 0 and 1")
        if self.hidden < 0 or self.steps < 1:
            raise SpecError(f"hidden={self.hidden!r}, steps={self.steps!r}", needed="hidden >= 0 and steps >= 1")
        if not 0 <= self.penalty < np.inf:
            raise SpecError(f"penalty={self.penalty!r}", needed="a number of at least 0", tries=["penalty=0.01"])

    def fit(self, X: npt.ArrayLike, *, untrusted: npt.ArrayLike | None = None, seed: int = 0) -> FittedClassifier:
        """The fit on trusted rows ``X`` (n, d) and unlabelled ``untrusted`` rows (m, d); ``seed`` draws the weights.

        Raises:
            FitError: where there are no untrusted rows, or either is no table of at least two rows of finite numbers.
        """
        rows, pool = trusted_and_pool(X, untrusted, self)
        both = np.concatenate([rows, pool])
        units, _ = spread_of(both, resolution(X))
        draw = torch.Generator().manual_seed(seed)
        with torch.inference_mode(False), torch.enable_grad():
            weights = self._trained(
                torch.from_numpy(units.standardised(rows)), torch.from_numpy(units.standardised(pool)), draw
            )
        return FittedClassifier(units.mean, units.scale, *(weight.detach().numpy().copy() for weight in weights))

    def restore(self, state: Mapping[str, npt.ArrayLike]) -> FittedClassifier:
        """The fit that ``state`` was taken from, with the same scores to the last bit.

        Raises:
            StoreError: where an array is missing, or has another shape or broken numbers.
        """
        width: str | int = self.hidden or "d"
        shapes: dict[str, tuple[str | int, ...]] = {"mean": ("d",), "scale": ("d",), "out": (width,), "bias": (1,)}
        if self.hidden:
            shapes |= {"inner": (self.hidden, "d"), "inner_bias": (self.hidden,)}
        kept = restored(self, state, shapes, positive=("scale",))
        return FittedClassifier(**kept)

    def _trained(self, rows: Tensor, pool: Tensor, draw: torch.Generator) -> list[Tensor]:
        """Weights and bias of the last layer, then those of the hidden one, where there is one."""
        d = rows.shape[1]
        sizes = [(self.hidden or d,), (1,)] + ([(self.hidden, d), (self.hidden,)] if self.hidden else [])
        weights = [torch.zeros(size, dtype=torch.float64) for size in sizes]
        if self.hidden:  # a linear classifier starts at zero, where nothing is drawn
            weights[0] = torch.randn(sizes[0], generator=draw, dtype=torch.float64) / self.hidden**0.5
            weights[2] = torch.randn(sizes[2], generator=draw, dtype=torch.float64) * (2 / d) ** 0.5
        for weight in weights:
            weight.requires_grad_(True)
        optimiser = torch.optim.Adam(weights, lr=_RATE)
        for _ in range(self.steps):
            normal, anomalous = risks(_output(rows, weights), _output(pool, weights), self.normal_share)
            # Below zero the second part is all noise: step away from it alone (Algorithm 1, with beta 0 and gamma 1).
            objective = normal + anomalous if anomalous >= 0 else -anomalous
            objective = objective + self.penalty * sum(((weight**2).sum() for weight in weights[::2]), torch.zeros(()))
            optimiser.zero_grad()
            objective.backward()
            optimiser.step()
        return weights


def risks(trusted: Tensor, untrusted: Tensor, normal_share: float) -> tuple[Tensor, Tensor]:
    """The two parts of the risk, from the classifier's outputs (n,) on trusted and (m,) on untrusted rows.

    Returns:
        The risk on normal rows, and the estimate of the risk on anomalous ones, which can come out below zero. Each is
        weighted by the share of such rows.
    """
    normal = normal_share * torch.sigmoid(-trusted).mean()
    anomalous = torch.sigmoid(untrusted).mean() - normal_share * torch.sigmoid(trusted).mean()
    return normal, anomalous


def _output(rows: Tensor, weights: list[Tensor]) -> Tensor:
    inner = torch.relu(rows @ weights[2].T + weights[3]) if len(weights) > 2 else rows
    output: Tensor = inner @ weights[0] + weights[1]
    return output


@dataclass(frozen=True, eq=False)
class FittedClassifier:
    """A trained classifier, linear or with one hidden layer.

    Args:
        mean: (d,) mean of all rows of the fit.
        scale: (d,) unit of each column.
        out: (d,) or (hidden,) weights of the output, positive towards normal.
        bias: (1,) its bias.
        inner: (hidden, d) weights of the hidden layer.
        inner_bias: (hidden,) its biases.
    """

    mean: Array
    scale: Array
    out: Array
    bias: Array
    inner: Array | None = None
    inner_bias: Array | None = None

    def __post_init__(self) -> None:
        frozen(*self.state().values())

    def score_samples(self, X: npt.ArrayLike) -> Array:
        """Normality (n,) of the rows of ``X`` (n, d): the classifier's output.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        scores: Array = -self.contributions(X).sum(axis=1)
        return scores

    def contributions(self, X: npt.ArrayLike) -> Array:
        """Each column's part (n, d) of the anomaly score, with the constant spread evenly.

        The classifier is linear, or linear where the same hidden units are on: the part is the column, less the mean of
        all rows of the fit, times the slope at the row.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        table = as_rows(X, what="rows to score", columns=len(self.mean), error=InputsError)
        rows = Spread(self.mean, self.scale, np.ones_like(self.scale), 0.0).standardised(table)
        if self.inner is None or self.inner_bias is None:
            return -(rows * self.out) - self.bias / len(self.mean)
        # One matrix-vector product per row, so that no last bit depends on the other rows.
        inner = np.matmul(self.inner, rows[:, :, None])[:, :, 0] + self.inner_bias
        on = np.ascontiguousarray(np.where(inner > 0, self.out, 0.0))
        slopes = np.matmul(self.inner.T, on[:, :, None])[:, :, 0]
        constants = (on * self.inner_bias).sum(axis=1, keepdims=True) + self.bias
        parts: Array = -(rows * slopes) - constants / len(self.mean)
        return parts

    def state(self) -> dict[str, Array]:
        """Arrays that `PositiveUnlabelled.restore` takes."""
        kept = {"mean": self.mean, "scale": self.scale, "out": self.out, "bias": self.bias}
        if self.inner is not None and self.inner_bias is not None:
            kept |= {"inner": self.inner, "inner_bias": self.inner_bias}
        return kept
