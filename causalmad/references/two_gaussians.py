"""A mixture of the trusted Gaussian and a second one that is learnt from unlabelled rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from causalmad.config import require_options
from causalmad.errors import SpecError
from causalmad.references.base import resolution
from causalmad.references.pool import trusted_and_pool
from causalmad.references.quadratic import FittedQuadratic, quadratic_restored
from causalmad.references.whitening import root, spread_of

Array = npt.NDArray[np.float64]

_START = 0.2  # share of the pool, the farthest from the trusted mean, that the second Gaussian starts from
_ENOUGH = 1e-9  # gain in log-likelihood per row at which the iterations end


@dataclass(frozen=True)
class TwoGaussians:
    """Log-odds that a row comes from a second Gaussian, fitted by EM beside the trusted one (offline).

    The untrusted rows are taken as a mixture of the trusted Gaussian (mean and Ledoit-Wolf covariance of the trusted
    rows, held fixed) and one other Gaussian, whose mean, covariance and share are learnt by expectation-maximisation.
    The anomaly score is the posterior log-odds of the second, in nats.

    - The second Gaussian is in no direction narrower than the trusted one. In whitened coordinates this clips the
      eigenvalues of its covariance at 1, which is the exact maximum under that constraint: the likelihood never falls,
      no component collapses on a few rows, and no row is the more normal for being farther from the trusted rows.
    - It starts from the fifth of the pool that is farthest from the trusted mean: nothing is drawn.

    Args:
        iterations: the most EM steps.

    References:
        Dempster, Laird, Rubin 1977, J. Royal Statistical Society B 39.
    """

    iterations: int = 100

    def __post_init__(self) -> None:
        require_options(self)
        if self.iterations < 1:
            raise SpecError(f"iterations={self.iterations!r}", needed="a whole number of at least 1")

    def fit(self, X: npt.ArrayLike, *, untrusted: npt.ArrayLike | None = None) -> FittedQuadratic:
        """The fit on trusted rows ``X`` (n, d) and unlabelled ``untrusted`` rows (m, d).

        Raises:
            FitError: where there are no untrusted rows, or either is no table of at least two rows of finite numbers.
        """
        rows, pool = trusted_and_pool(X, untrusted, self)
        trusted, _ = spread_of(rows, resolution(X), "ledoit-wolf")
        whitening = root(trusted.precision)
        found = second_gaussian(trusted.standardised(pool) @ whitening, self.iterations)
        matrix = whitening @ (np.eye(len(whitening)) - found.precision) @ whitening / 2
        linear = whitening @ found.precision @ found.mean
        return FittedQuadratic(trusted.mean, trusted.scale, (matrix + matrix.T) / 2, linear, found.at_zero)

    def restore(self, state: Mapping[str, npt.ArrayLike]) -> FittedQuadratic:
        """The fit that ``state`` was taken from, with the same scores to the last bit.

        Raises:
            StoreError: where an array is missing, or has another shape or broken numbers.
        """
        return quadratic_restored(self, state)


@dataclass(frozen=True, eq=False)
class Second:
    """The second Gaussian in coordinates where the trusted one is N(0, I).

    Args:
        share: its share of the pool.
        mean: (d,) its mean.
        precision: (d, d) its inverse covariance.
        logdet: log determinant of the precision.
        likelihoods: mean log-likelihood of the pool, less that under the trusted Gaussian alone, before each step.
    """

    share: float
    mean: Array
    precision: Array
    logdet: float
    likelihoods: tuple[float, ...] = ()

    @property
    def at_zero(self) -> float:
        """Log-odds at the trusted mean."""
        return float(logit(self.share)) + (self.logdet - float(self.mean @ self.precision @ self.mean)) / 2

    def log_odds(self, rows: Array) -> Array:
        """Log-odds (m,) of whitened rows (m, d)."""
        apart = rows - self.mean
        distances = ((apart @ self.precision) * apart).sum(axis=1)
        odds: Array = ((rows**2).sum(axis=1) - distances + self.logdet) / 2 + logit(self.share)
        return odds


def second_gaussian(rows: Array, iterations: int) -> Second:
    """EM on whitened untrusted rows (m, d) for the Gaussian beside N(0, I)."""
    distances = (rows**2).sum(axis=1)
    found = _maximised(rows, (distances >= np.quantile(distances, 1 - _START)).astype(np.float64))
    likelihoods: list[float] = []
    for _ in range(iterations):
        odds = found.log_odds(rows)
        # log((1 - w) N1 + w N2) - log N1 = log(1 - w) + log(1 + exp(odds))
        likelihoods.append(float(np.log1p(-found.share) + np.logaddexp(0.0, odds).mean()))
        if len(likelihoods) > 1 and likelihoods[-1] - likelihoods[-2] < _ENOUGH:
            break
        found = _maximised(rows, expit(odds))
    return Second(found.share, found.mean, found.precision, found.logdet, tuple(likelihoods))


def _maximised(rows: Array, weights: Array) -> Second:
    """The M step: share, mean and covariance from the weights (m,) of the rows."""
    m = len(rows)
    share = float(np.clip(weights.mean(), 0.5 / m, 1 - 0.5 / m))
    parts = weights / max(weights.sum(), np.finfo(np.float64).tiny)
    mean = parts @ rows
    apart = rows - mean
    values, vectors = np.linalg.eigh((apart * parts[:, None]).T @ apart)
    values = np.maximum(values, 1.0)
    return Second(share, mean, (vectors / values) @ vectors.T, -float(np.log(values).sum()))
