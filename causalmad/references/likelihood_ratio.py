"""Likelihood ratio of two Gaussians, one of the untrusted rows and one of the trusted ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from causalmad.references.base import resolution
from causalmad.references.pool import trusted_and_pool
from causalmad.references.quadratic import FittedQuadratic, quadratic_restored
from causalmad.references.whitening import spread_of

Array = npt.NDArray[np.float64]

_LEAST = 1e-6  # directions with less than this share of the largest variance hold no evidence


@dataclass(frozen=True)
class LikelihoodRatio:
    """Log-likelihood ratio of two Gaussians: one of the untrusted rows, one of the trusted rows (offline).

    The anomaly score is ``log N(x; untrusted) - log N(x; trusted)`` in nats, each Gaussian with the mean and the
    Ledoit-Wolf covariance of its rows. Both are taken after a projection to the directions in which trusted and
    untrusted rows together vary (columns in units of their common standard deviation): the others hold no evidence
    for either. The untrusted rows need no labels; the more of them are anomalous, the better the score.

    A row far away in a direction in which the untrusted rows vary *less* than the trusted ones is evidence for the
    trusted Gaussian: this is a ratio, and not a distance from what is normal.

    References:
        Neyman, Pearson 1933. Ledoit, Wolf 2004, J. Multivariate Analysis 88.
    """

    def fit(self, X: npt.ArrayLike, *, untrusted: npt.ArrayLike | None = None) -> FittedQuadratic:
        """The fit on trusted rows ``X`` (n, d) and unlabelled ``untrusted`` rows (m, d).

        Raises:
            FitError: where there are no untrusted rows, or either is no table of at least two rows of finite numbers.
        """
        rows, pool = trusted_and_pool(X, untrusted, self)
        eps = resolution(X)
        both = np.concatenate([rows, pool])
        common, _ = spread_of(both, eps)
        together = common.standardised(both)
        values, vectors = np.linalg.eigh(together.T @ together / len(both))
        basis = vectors[:, values > _LEAST * max(values[-1], 1.0)]
        trusted, other = (_gaussian(common.standardised(table) @ basis, eps) for table in (rows, pool))
        matrix = basis @ (trusted.precision - other.precision) @ basis.T / 2
        linear = basis @ (other.precision @ other.mean - trusted.precision @ trusted.mean)
        return FittedQuadratic(common.mean, common.scale, matrix, linear, other.at_zero - trusted.at_zero)

    def restore(self, state: Mapping[str, npt.ArrayLike]) -> FittedQuadratic:
        """The fit that ``state`` was taken from, with the same scores to the last bit.

        Raises:
            StoreError: where an array is missing, or has another shape or broken numbers.
        """
        return quadratic_restored(self, state)


@dataclass(frozen=True, eq=False)
class _Gaussian:
    """A Gaussian: mean (k,), precision (k, k), and its log density at zero but for the constant of k dimensions."""

    mean: Array
    precision: Array
    at_zero: float


def _gaussian(rows: Array, eps: float) -> _Gaussian:
    """The Gaussian of rows (n, k), shrunk."""
    if not rows.shape[1]:
        return _Gaussian(np.zeros(0), np.zeros((0, 0)), 0.0)
    fit, _ = spread_of(rows, eps, "ledoit-wolf")
    precision = fit.precision / fit.scale / fit.scale[:, None]
    # From the standardised precision, whose numbers are of one size.
    logdet = float(np.linalg.slogdet(fit.precision)[1] - 2 * np.log(fit.scale).sum())
    return _Gaussian(fit.mean, precision, (logdet - float(fit.mean @ precision @ fit.mean)) / 2)
