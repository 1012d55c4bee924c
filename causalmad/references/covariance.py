"""The trusted spread as `Mahalanobis` uses it: units, shrinkage, and a precision that is always finite."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from causalmad.errors import FitError
from causalmad.moments import Moments
from causalmad.references.chunks import Passes, in_folds

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_CACHED = 2**16  # numbers that are worked on at a time, while they are in the cache
_FOLDS = 10  # with fewer, distances from the smaller fits would be too large

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
        shrinkage: share of the identity in that covariance, in [0, 1]; 0 where there is none.
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


@dataclass(frozen=True, eq=False)
class Summary:
    """What one pass over the trusted rows leaves of them.

    Args:
        moments: count, mean and scatter.
        constant: (d,) which columns count as constant, see `constant_columns`.
        scale: (d,) unit of each column, as in `Spread`.
    """

    moments: Moments
    constant: Mask
    scale: Array

    @classmethod
    def of(cls, rows: Passes) -> Summary:
        """The summary of all rows, read once.

        Raises:
            FitError: where there are no rows, or values are so large that their squares overflow.
        """
        seen = iter(rows)
        first = next(seen, None)
        if first is None:
            raise FitError("got no chunks of trusted rows", needed="at least one row")
        d = first.shape[1]
        lowest, highest = np.full(d, np.inf), np.full(d, -np.inf)

        def watched() -> Iterator[Array]:
            for chunk in chain([first], seen):
                if len(chunk):
                    np.minimum(lowest, chunk.min(axis=0), out=lowest)
                    np.maximum(highest, chunk.max(axis=0), out=highest)
                yield chunk

        with np.errstate(over="ignore", invalid="ignore"):
            moments = Moments.of(watched(), d)
            deviation = np.sqrt(np.diagonal(moments.scatter) / max(moments.n, 1))
        if not moments.n:
            return cls(moments, np.ones(d, dtype=np.bool_), np.ones(d))
        if not np.isfinite(moments.scatter).all():
            raise FitError(
                f"the trusted rows reach {np.maximum(np.abs(lowest), np.abs(highest)).max():.3g}, "
                "and the square of that overflows",
                needed="columns whose variance is a finite number",
                tries=["a logarithm of the column, with its sign"],
            )
        constant = constant_range(lowest, highest, rows.resolution)
        scale = np.where(constant, constant_units(moments.mean, deviation[~constant]), deviation)
        return cls(moments, constant, scale)

    def correlation(self, moments: Moments | None = None) -> Array:
        """Covariance of the columns that vary, in their units; of other rows' ``moments`` where they are given."""
        varying = np.flatnonzero(~self.constant)
        scatter = (moments or self.moments).covariance(ddof=0)[np.ix_(varying, varying)]
        found: Array = scatter / self.scale[varying] / self.scale[varying, None]
        return found


def spread(rows: Iterable[Array], table: Summary, covariance: str, rcond: float, rank: int = 16) -> Spread:
    """The `Spread` of trusted rows.

    Args:
        rows: the trusted rows in chunks; read once more for "ledoit-wolf" alone.
        table: their summary.
        covariance: "ledoit-wolf", "oas", "empirical", "low-rank" or "diagonal".
        rcond: eigenvalues below this share of the largest are raised to it.
        rank: eigenvalues that "low-rank" keeps.
    """
    mean, scale = table.moments.mean, table.scale
    if covariance == "diagonal":
        return Spread(mean, scale, np.ones(len(scale)), 0.0)
    correlation = table.correlation()
    if covariance == "low-rank":
        return Spread(mean, scale, inverse(_low_rank(correlation, rank), table.constant, rcond), 0.0)
    shrinkage = shrinkage_of(rows, table, correlation, covariance)
    shrunk = (1 - shrinkage) * correlation + shrinkage * np.eye(len(correlation))
    return Spread(mean, scale, inverse(shrunk, table.constant, rcond), shrinkage)


def robust_spread(X: Array, table: Summary, rcond: float, seed: int) -> Spread:
    """The `Spread` of the half of the rows ``X`` (n, d) that is least spread (Rousseeuw and Van Driessen 1999).

    Args:
        X: rows, or a sample of them.
        table: summary of all rows, for units.
        rcond: eigenvalues below this share of the largest are raised to it.
        seed: seed of the starts of the search.

    Raises:
        FitError: where the rows are too few for their columns, or half of them lie in a plane.
    """
    from sklearn.covariance import MinCovDet

    varying = ~table.constant
    d = int(varying.sum())
    tries = ['covariance="ledoit-wolf"', 'covariance="low-rank"', "causalmad.references.Transformed()"]
    if len(X) < 2 * (d + 1):
        raise FitError(
            f'got {len(X)} rows of {d} columns that vary for covariance="robust"',
            needed=f"at least {2 * (d + 1)} rows: half of them are set aside, and the rest must span all columns",
            tries=tries,
        )
    if not d:
        return Spread(table.moments.mean, table.scale, np.eye(len(varying)), 0.0)
    Z = (X[:, varying] - table.moments.mean[varying]) / table.scale[varying]
    try:
        with warnings.catch_warnings():  # what the search warns of is checked below
            warnings.simplefilter("ignore")
            found = MinCovDet(random_state=int(np.random.default_rng([seed, 5]).integers(2**31))).fit(Z)
        values = np.linalg.eigvalsh(found.covariance_)
        flat = not np.isfinite(values).all() or values[0] < 1e-12 * values[-1]
    except ValueError:  # how scikit-learn says that the rows it chose are singular
        flat = True
    if flat:
        raise FitError(
            'the rows that covariance="robust" kept span fewer directions than there are columns',
            needed="columns of which none follows from the others on half of the rows",
            causes=["duplicate columns", "columns that hold one value on most rows"],
            tries=tries,
        )
    mean = table.moments.mean.copy()
    mean[varying] += table.scale[varying] * found.location_
    return Spread(mean, table.scale, inverse(found.covariance_, table.constant, rcond), 0.0)


def inverse(covariance: Array, constant: Mask, rcond: float) -> Array:
    """Inverse (d, d) of the covariance of the columns that vary; constant columns stand alone, in their own units."""
    precision = np.eye(len(constant))
    if len(covariance):
        values, vectors = np.linalg.eigh(covariance)
        values = np.maximum(values, rcond * values[-1])
        varying = np.flatnonzero(~constant)
        precision[np.ix_(varying, varying)] = (vectors / values) @ vectors.T
    found: Array = (precision + precision.T) / 2
    return found


def _low_rank(covariance: Array, rank: int) -> Array:
    """The covariance with all but its ``rank`` largest eigenvalues replaced by their mean."""
    if not len(covariance):
        return covariance
    values, vectors = np.linalg.eigh(covariance)
    rest = max(len(values) - rank, 1)  # with no value to replace it stays as it is
    values[:rest] = max(values[:rest].mean(), 0.0)
    found: Array = (vectors * values) @ vectors.T
    return found


def shrinkage_of(rows: Iterable[Array], table: Summary, correlation: Array, covariance: str) -> float:
    """Share of the identity that the rule gives: scikit-learn's, from sums that chunks can be added to."""
    d, n = len(correlation), table.moments.n
    if covariance == "empirical" or d < 2:
        return 0.0
    size, trace = float((correlation**2).sum()), float(np.trace(correlation))
    if covariance == "oas":  # Chen et al. 2010, equation 23, without the terms in 2/d
        under = (n + 1) * (size - trace**2 / d)
        return 1.0 if under <= 0 else min((size + trace**2) / under, 1.0)
    delta = (size - trace**2 / d) / d
    if delta <= 0:
        return 0.0
    # Ledoit and Wolf 2004, section 3.2: the spread of z z^T over rows z, from the fourth powers of their norms.
    weight = np.where(table.constant, 0.0, 1 / table.scale) ** 2
    fourth, mean = 0.0, table.moments.mean
    part = max(_CACHED // len(mean), 1)
    buffer = np.empty((part, len(mean)))
    for chunk in rows:
        for start in range(0, len(chunk), part):
            block = chunk[start : start + part]
            squares = np.subtract(block, mean, out=buffer[: len(block)])
            squares *= squares
            fourth += float(((squares @ weight) ** 2).sum())
    beta = (fourth / n - size) / d / n
    return min(max(beta, 0.0), delta) / delta


def constant_columns(X: Array, eps: float) -> Mask:
    """Which columns (d,) hold one value in all rows, up to rounding at the resolution ``eps`` they were computed in.

    So do columns whose whole range is so small that its square underflows.
    """
    return constant_range(X.min(axis=0), X.max(axis=0), eps)


def constant_range(lowest: Array, highest: Array, eps: float) -> Mask:
    """`constant_columns` from the smallest and largest value (d,) of each column."""
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


def left_out_distances(rows: Iterable[Array], table: Summary, fit: Spread, rcond: float) -> Array:
    """Squared distance (n,) of each trusted row from a fit on all the other trusted rows, units and shrinkage held.

    With n rows, r a row's deviation from the mean of all, S the covariance of all and rho the shrinkage, leaving the
    row out takes a multiple of r r^T away. So with A = (1 - rho) n/(n-1) S + rho I, c = (1 - rho) n/(n-1)^2 and
    h = r^T A^-1 r, the distance is (n/(n-1))^2 h / (1 - c h) (Sherman and Morrison 1950).
    """
    n = table.moments.n
    grow = n / (n - 1)
    c = (1 - fit.shrinkage) * n / (n - 1) ** 2
    varying = ~table.constant
    values, vectors = np.empty(0), np.empty((0, 0))
    if fit.precision.ndim == 2 and varying.any():
        S = table.correlation()
        values, vectors = np.linalg.eigh((1 - fit.shrinkage) * grow * S + fit.shrinkage * np.eye(len(S)))
        values = np.maximum(values, rcond * values[-1])
    found = []
    for chunk in rows:
        deviations = fit.standardised(chunk)[:, varying]
        if fit.precision.ndim == 1:
            leverage = deviations**2 / grow
        else:
            leverage = ((deviations @ vectors) ** 2 / values).sum(axis=1, keepdims=True)
        # A row that alone spans a direction has c h = 1: its distance is far, and held finite by the same cut-off.
        found.append((grow**2 * leverage / np.maximum(1 - c * leverage, rcond)).sum(axis=1))
    return np.concatenate(found)


def low_rank_distances(rows: Iterable[Array], table: Summary, rcond: float, rank: int) -> Array:
    """Squared distance (n,) of each trusted row from a "low-rank" fit on nine tenths of the rows without it."""
    fits = []
    for others in moments_without_folds(rows, table, _FOLDS):
        low = _low_rank(table.correlation(others), rank)
        fits.append(Spread(others.mean, table.scale, inverse(low, table.constant, rcond), 0.0))
    found = []
    for chunk, fold in in_folds(rows, table.moments.n, _FOLDS):
        distances = np.empty(len(chunk))
        for k, fit in enumerate(fits):
            distances[fold == k] = fit.shares(chunk[fold == k]).sum(axis=1)
        found.append(distances)
    return np.concatenate(found)


def moments_without_folds(rows: Iterable[Array], table: Summary, number: int) -> list[Moments]:
    """Moments of all rows but those of one fold, for each of the folds that `in_folds` gives; one pass."""
    d = table.moments.d
    parts = [Moments.empty(d)] * number
    for chunk, fold in in_folds(rows, table.moments.n, number):
        parts = [part.update(chunk[fold == k]) for k, part in enumerate(parts)]
    found = []
    for k in range(number):
        others = Moments.empty(d)
        for j, part in enumerate(parts):
            others = others if j == k else others.merge(part)
        found.append(others)
    return found


def robust_distances(X: Array, table: Summary, rcond: float, seed: int) -> Array:
    """Squared distance (n,) of each row of ``X`` from a "robust" fit on nine tenths of these rows, without it."""
    _, fold = next(in_folds([X], len(X), _FOLDS))
    distances = np.empty(len(X))
    for k in range(_FOLDS):
        fit = robust_spread(X[fold != k], table, rcond, seed)
        distances[fold == k] = fit.shares(X[fold == k]).sum(axis=1)
    return distances
