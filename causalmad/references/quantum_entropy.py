"""Quantum entropy scores: the directions in which an unlabelled pool is wider than the trusted rows, softly chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from causalmad.config import require_options
from causalmad.errors import SpecError
from causalmad.references.base import resolution
from causalmad.references.pool import trusted_and_pool
from causalmad.references.quadratic import FittedQuadratic, quadratic_restored
from causalmad.references.whitening import root, spread_of

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class QuantumEntropy:
    """Distance in the directions in which untrusted rows spread more than trusted ones (QUE; offline).

    Trusted rows give the whitening: z is a row less the trusted mean, whitened by the Ledoit-Wolf covariance of the
    trusted rows, so that normal rows have the covariance I. With S the second moment of the whitened *untrusted* rows,
    the anomaly score is

        z^T Q z,    Q = exp(A) / tr exp(A),    A = alpha (S - I) / (||S|| - 1),

    which for alpha = 0 is the squared Mahalanobis distance over d, and for alpha to infinity the squared coordinate
    along the top direction of S. Q is the mixture of directions of trace 1 that has the largest
    ``alpha tr(Q S) / (||S|| - 1)`` plus entropy, so the score is one that the pool has most of on average.

    - S and z are both measured from the trusted mean. About the pool's own mean, S would lack the shift of the mean
      that the anomalies cause, while z would still have it. A benign shift of the whole pool counts as spread too.
    - Where no direction of the pool is wider than the trusted rows (||S|| <= 1) there is nothing to choose: Q = I/d.
    - Q is computed once, in ``fit``. The pool is never labelled; score rows that are not in it to measure power.

    Args:
        alpha: how sharply the widest directions are preferred, at least 0.

    References:
        Dong, Hopkins, Li 2019, arXiv 1906.11366. Hayase, Kong, Somani, Oh 2021, arXiv 2104.11315 (SPECTRE; alpha = 4).
    """

    alpha: float = 4.0

    def __post_init__(self) -> None:
        require_options(self)
        if not 0 <= self.alpha < np.inf:
            raise SpecError(f"alpha={self.alpha!r}", needed="a number of at least 0", tries=["alpha=4.0"])

    def fit(self, X: npt.ArrayLike, *, untrusted: npt.ArrayLike | None = None) -> FittedQuadratic:
        """The fit on trusted rows ``X`` (n, d) and unlabelled ``untrusted`` rows (m, d).

        Raises:
            FitError: where there are no untrusted rows, or either is no table of at least two rows of finite numbers.
        """
        rows, pool = trusted_and_pool(X, untrusted, self)
        trusted, _ = spread_of(rows, resolution(X), "ledoit-wolf")
        whitening = root(trusted.precision)
        whitened = trusted.standardised(pool) @ whitening
        values, vectors = np.linalg.eigh(whitened.T @ whitened / len(pool))
        # exp(A) has the vectors of S; A less its largest value gives the same Q, and cannot overflow.
        excess = values[-1] - 1
        weights = softmax(self.alpha * (values - values[-1]) / excess) if excess > 0 else np.full(len(values), 1.0)
        half = whitening @ vectors * np.sqrt(weights / weights.sum())
        return FittedQuadratic(trusted.mean, trusted.scale, half @ half.T, np.zeros(len(values)))

    def restore(self, state: Mapping[str, npt.ArrayLike]) -> FittedQuadratic:
        """The fit that ``state`` was taken from, with the same scores to the last bit.

        Raises:
            StoreError: where an array is missing, or has another shape or broken numbers.
        """
        return quadratic_restored(self, state)
