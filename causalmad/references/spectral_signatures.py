"""Spectral signatures: the coordinate along the direction in which untrusted rows vary most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from causalmad.references.base import resolution
from causalmad.references.pool import trusted_and_pool
from causalmad.references.quadratic import FittedQuadratic, quadratic_restored
from causalmad.references.whitening import spread_of


@dataclass(frozen=True)
class SpectralSignatures:
    """Squared coordinate along the top singular direction of the untrusted rows (offline).

    The anomaly score of a row x is ``((x - m)^T v)^2``, m being the mean of the *untrusted* rows and v the top right
    singular vector of the untrusted rows less m. Columns are first divided by their trusted standard deviation, without
    which the column in the smallest unit would be v; this is the only use of the trusted rows. The rows of all
    predicted classes are taken together (the paper does it by class, which untrusted rows here do not have).

    It finds anomalies only where they make the direction that varies most; `QuantumEntropy` compares with how much the
    trusted rows vary in it.

    References:
        Tran, Li, Madry 2018, arXiv 1811.00636.
    """

    def fit(self, X: npt.ArrayLike, *, untrusted: npt.ArrayLike | None = None) -> FittedQuadratic:
        """The fit on trusted rows ``X`` (n, d), for the units, and unlabelled ``untrusted`` rows (m, d).

        Raises:
            FitError: where there are no untrusted rows, or either is no table of at least two rows of finite numbers.
        """
        rows, pool = trusted_and_pool(X, untrusted, self)
        trusted, _ = spread_of(rows, resolution(X))
        units = trusted.standardised(pool)
        centre = units.mean(axis=0)
        direction = np.linalg.svd(units - centre, full_matrices=False)[2][0]
        mean = trusted.mean + centre * trusted.scale
        return FittedQuadratic(mean, trusted.scale, np.outer(direction, direction), np.zeros(len(mean)))

    def restore(self, state: Mapping[str, npt.ArrayLike]) -> FittedQuadratic:
        """The fit that ``state`` was taken from, with the same scores to the last bit.

        Raises:
            StoreError: where an array is missing, or has another shape or broken numbers.
        """
        return quadratic_restored(self, state)
