"""The trusted spread as `Mahalanobis` uses it: units, shrinkage, and a precision that is always finite."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from causalmad.errors import FitError
from causalmad.moments import Moments

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_CONSTANT_UNIT = 1e-3  # of a constant column's own size: rounding stays far below one unit, a real departure far above
_LARGEST = 1e100  # standardised values stop here, so that no product of two of them overflows
_SMALLEST = 1e-150  # half ranges up to here have squares that underflow


@dataclass(frozen=True, eq=False)
class Spread:
    """Mean, unit and precision of the trusted rows.

    Args:
        mean: (d,) trusted mean.
        scale: (d,) unit of each column: its trusted standard deviation (ddof 0), or `constant_units`.
        precision: (d, d) inverse covariance of the standardised columns; (d,) where it is diagonal.
        shrinkage: share of the identity in that covariance, in [0, 1].
    """

    mean: Array
    scale: Array
    precision: Array
    shrinkage: float

    def standardised(self, X: Array) -> Array:
        """Rows in trusted units (n, d)."""
        with np.errstate(over="ignore"):  # an overflow is infinite, and infinity is clipped
            return np.clip((X - self.mean) / self.scale, -_LARGEST, _LARGEST)

    def shares(self, X: Array) -> Array:
        """``r_j (P r)_j`` (n, d) for standardised rows r: sums to the squared Mahalanobis distance."""
        rows = self.standardised(X)
        if self.precision.ndim == 1:
            return rows * self.precision * rows
        # One matrix-vector product per row: in a single matrix-matrix product the last bits of a row would depend on
        # how many rows come with it.
        products: Array = np.matmul(self.precision, rows[:, :, None])[:, :, 0]
        return rows * products


def spread(X: Array, constant: Mask, covariance: str, rcond: float) -> Spread:
    """The `Spread` of trusted rows.

    Args:
        X: (n, d) finite trusted rows.
        constant: (d,) which columns are to count as constant, from `constant_columns`.
        covariance: "ledoit-wolf", "oas", "empirical" or "diagonal".
        rcond: eigenvalues below this share of the largest are raised to it.

    Raises:
        FitError: where the values are so large that their squares overflow.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        moments = Moments.empty(X.shape[1]).update(X)
        scatter = moments.covariance(ddof=0)
        deviation = np.sqrt(np.diagonal(scatter))
    if not np.isfinite(scatter).all():
        raise FitError(
            f"the trusted rows reach {np.abs(X).max():.3g}, and the square of that overflows",
            needed="columns whose variance is a finite number",
            tries=["a logarithm of the column, with its sign"],
        )
    scale = np.where(constant, constant_units(moments.mean, deviation[~constant]), deviation)
    if covariance == "diagonal":
        return Spread(moments.mean, scale, np.ones(len(scale)), 0.0)

    varying = np.flatnonzero(~constant)
    precision = np.eye(len(scale))
    shrinkage = 0.0
    if len(varying):
        block = np.ix_(varying, varying)
        correlation = scatter[block] / scale[varying] / scale[varying, None]
        shrinkage = _shrinkage((X[:, varying] - moments.mean[varying]) / scale[varying], covariance)
        values, vectors = np.linalg.eigh((1 - shrinkage) * correlation + shrinkage * np.eye(len(varying)))
        values = np.maximum(values, rcond * values[-1])
        precision[block] = (vectors / values) @ vectors.T
        precision = (precision + precision.T) / 2
    return Spread(moments.mean, scale, precision, shrinkage)


def _shrinkage(Z: Array, covariance: str) -> float:
    """Share of the identity that the rule gives, from standardised rows."""
    if covariance == "empirical":
        return 0.0
    from sklearn.covariance import ledoit_wolf_shrinkage, oas

    if covariance == "oas":
        return float(oas(Z, assume_centered=True)[1])
    return float(ledoit_wolf_shrinkage(Z, assume_centered=True))


def constant_columns(X: Array, eps: float) -> Mask:
    """Which columns (d,) hold one value in all rows, up to rounding at the resolution ``eps`` they were computed in.

    So do columns whose whole range is so small that its square underflows.
    """
    highest, lowest = X.max(axis=0), X.min(axis=0)
    half_range = highest / 2 - lowest / 2  # halved first: the range itself can overflow
    flat: Mask = half_range <= np.maximum(4 * eps * np.maximum(np.abs(highest), np.abs(lowest)), _SMALLEST)
    return flat


def constant_units(mean: Array, deviations: Array) -> Array:
    """Units (d,) for constant columns, which have no spread of their own.

    A thousandth of the column's own size |mean|, and for a column of zeros a thousandth of the typical (median)
    standard deviation of the columns that vary, or of 1 where none does.
    """
    typical = float(np.median(deviations)) if len(deviations) else 1.0
    size = np.abs(mean)
    return _CONSTANT_UNIT * np.where(size > 1e-12 * typical, size, typical)


def left_out_distances(X: Array, constant: Mask, fit: Spread, rcond: float) -> Array:
    """Squared distance (n,) of each trusted row from a fit on all the other trusted rows, units and shrinkage held.

    With n rows, r a row's deviation from the mean of all, S the covariance of all and rho the shrinkage, leaving the
    row out takes a multiple of r r^T away. So with A = (1 - rho) n/(n-1) S + rho I, c = (1 - rho) n/(n-1)^2 and
    h = r^T A^-1 r, the distance is (n/(n-1))^2 h / (1 - c h) (Sherman and Morrison 1950).
    """
    n = len(X)
    rows = fit.standardised(X)[:, ~constant]
    grow = n / (n - 1)
    c = (1 - fit.shrinkage) * n / (n - 1) ** 2
    if fit.precision.ndim == 1:
        leverage = rows**2 / grow
    else:
        S = rows.T @ rows / n
        values, vectors = np.linalg.eigh((1 - fit.shrinkage) * grow * S + fit.shrinkage * np.eye(len(S)))
        values = np.maximum(values, rcond * values[-1]) if len(values) else values
        leverage = ((rows @ vectors) ** 2 / values).sum(axis=1, keepdims=True)
    # A row that alone spans a direction has c h = 1: its distance is far, and held finite by the same cut-off.
    distances: Array = (grow**2 * leverage / np.maximum(1 - c * leverage, rcond)).sum(axis=1)
    return distances
