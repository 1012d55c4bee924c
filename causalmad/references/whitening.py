"""Units, whitening and the leading principal directions of rows that are in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from causalmad.references.chunks import Passes
from causalmad.references.covariance import Spread, Summary, spread
from causalmad.references.state import frozen

Array = npt.NDArray[np.float64]

_RCOND = 1e-6  # eigenvalues below this share of the largest are raised to it
_LEAST = 1e-6  # directions with less than this share of the largest variance are left to the residual


def spread_of(rows: Array, eps: float, covariance: str = "diagonal") -> tuple[Spread, npt.NDArray[np.bool_]]:
    """The `Spread` of rows (n, d), and which columns (d,) count as constant.

    Args:
        rows: finite numbers.
        eps: resolution in which they were computed.
        covariance: "diagonal", where the units alone are wanted, or "ledoit-wolf".

    Raises:
        FitError: where values are so large that their squares overflow.
    """
    passes = Passes(rows)
    passes.resolution = eps
    table = Summary.of(passes)
    return spread(passes, table, covariance, _RCOND), table.constant


def root(precision: Array) -> Array:
    """The symmetric square root (d, d) of a precision: whitens rows of that precision."""
    values, vectors = np.linalg.eigh(precision)
    whitening: Array = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return whitening


@dataclass(frozen=True, eq=False)
class Leading:
    """Coordinates along k principal directions.

    Args:
        mean: (d,) what rows are measured from.
        scale: (d,) unit of each column.
        directions: (k, d) orthonormal rows.
        deviations: (k,) unit of each coordinate.
    """

    mean: Array
    scale: Array
    directions: Array
    deviations: Array

    def __post_init__(self) -> None:
        frozen(self.mean, self.scale, self.directions, self.deviations)

    def coordinates(self, X: Array) -> tuple[Array, Array]:
        """Coordinates (n, k), in their units, of rows (n, d), and the squared length (n,) of what they leave out."""
        rows = Spread(self.mean, self.scale, np.ones_like(self.scale), 0.0).standardised(X)
        # One matrix-vector product per row, so that no last bit depends on the other rows.
        along = np.matmul(self.directions, rows[:, :, None])[:, :, 0]
        rest = rows - np.matmul(self.directions.T, along[:, :, None])[:, :, 0]
        return np.ascontiguousarray(along / self.deviations), (rest**2).sum(axis=1)


def leading(rows: Array, units: Spread, most: int, *, whiten: bool) -> Leading:
    """At most ``most`` directions in which rows (n, d) vary most, in trusted units.

    Args:
        rows: rows that give the directions and the origin.
        units: unit of each column.
        most: the most directions.
        whiten: whether a coordinate's unit is its own standard deviation, or else the columns' unit.
    """
    standardised = units.standardised(rows)
    centre = standardised.mean(axis=0)
    _, values, directions = np.linalg.svd(standardised - centre, full_matrices=False)
    variances = values**2 / len(rows)
    k = max(1, min(most, int((variances > _LEAST * variances[0]).sum())))
    deviations = np.sqrt(variances[:k]) if whiten and variances[0] > 0 else np.ones(k)
    mean = units.mean + centre * units.scale
    return Leading(mean, units.scale, np.ascontiguousarray(directions[:k]), deviations)
