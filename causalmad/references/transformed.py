"""A monotone transform of each column before another reference, for heavy tails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from causalmad.config import require_options
from causalmad.errors import FitError, InputsError, SpecError, nearest
from causalmad.references.base import FittedReference, Reference, as_rows
from causalmad.references.chunks import Passes
from causalmad.references.covariance import Summary, constant_units
from causalmad.references.estimators import fit_reference
from causalmad.references.mahalanobis import Mahalanobis
from causalmad.references.nested import nested_state, restored_inside, split
from causalmad.references.state import frozen, restored

Array = npt.NDArray[np.float64]

TRANSFORMS = ("rank", "signed-log", "robust")

_KNOTS = 1001  # levels at which "rank" keeps the trusted distribution
_LARGEST = 1e100  # transformed values stop here, so that no square of them overflows


@dataclass(frozen=True)
class Transformed:
    """Another reference on columns that are transformed one by one.

    A few heavy tails inflate every variance and hide all else from a Mahalanobis distance. The transforms are strictly
    increasing, fitted on trusted rows, and go on outside the trusted range, so that a value beyond all trusted ones
    still counts by how far beyond it is.

    - "rank": the trusted distribution function, then the normal quantile: trusted columns become standard normal.
      Values between trusted ones are interpolated. Beyond the outermost trusted value the transform goes on along the
      line through the trusted median and that value: twice as far from the median as any trusted value is twice as far
      in normal units.
    - "signed-log": sign(x) log(1 + |x| / t), with t the median size of the trusted values that are not 0. For effects,
      whose zero and sign have a meaning.
    - "robust": (x - median) / (1.4826 median absolute deviation). The shape stays: for references that compare columns
      in their units.

    A column that is constant on the trusted rows is measured in its own size from that constant ("signed-log": from 0).

    Args:
        reference: fitted on the transformed rows: a part of this library, or a scikit-learn outlier estimator.
        transform: "rank", "signed-log" or "robust".

    References:
        Van der Waerden 1952 (normal scores). Beasley, Erickson, Allison 2009, Behavior Genetics 39.
    """

    reference: Reference = field(default_factory=Mahalanobis)
    transform: str = "rank"

    def __post_init__(self) -> None:
        require_options(self)
        if self.transform not in TRANSFORMS:
            raise SpecError(
                f"transform={self.transform!r} is unknown",
                needed=", ".join(TRANSFORMS),
                tries=[f"transform={name!r}" for name in nearest(str(self.transform), TRANSFORMS)],
            )

    def fit(
        self,
        X: npt.ArrayLike,
        *,
        untrusted: npt.ArrayLike | None = None,
        groups: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        classes: npt.ArrayLike | None = None,
        seed: int = 0,
    ) -> FittedTransformed:
        """The fit on trusted rows.

        Args:
            X: (n, d) trusted rows.
            untrusted: (m, d) unlabelled rows, for a reference that takes them: transformed as well.
            groups: (d,) group of each column, passed on.
            names: (d,) name of each column, passed on.
            classes: (n,) predicted class of each row, passed on.
            seed: seed of the reference.

        Raises:
            FitError: where ``X`` is no table of finite numbers, or the reference cannot be fitted.
        """
        rows = as_rows(X, what="trusted rows")
        if len(rows) < 2:
            raise FitError(f"got {len(rows)} trusted row{'s' * (len(rows) != 1)}", needed="at least 2, better 100")
        table = Summary.of(Passes(X if isinstance(X, np.ndarray) else rows))
        steps = _steps(rows, table, self.transform)
        values = steps(rows)
        # Rounding is no spread: the reference sees one value where there is one.
        values[:, table.constant] = steps(table.moments.mean[None])[:, table.constant]
        pool = None
        if untrusted is not None:
            pool = steps(as_rows(untrusted, what="untrusted rows", columns=rows.shape[1]))
        inner = fit_reference(
            self.reference, values, seed=seed, untrusted=pool, groups=groups, names=names, classes=classes
        )
        return FittedTransformed(steps, inner)

    def restore(self, state: Mapping[str, npt.ArrayLike]) -> FittedTransformed:
        """The fit that ``state`` was taken from, with the same scores to the last bit.

        Raises:
            StoreError: where an array is missing, or has another shape or broken numbers, or the reference inside
                cannot be restored.
        """
        own, inside = split({key: np.asarray(value) for key, value in state.items()}, "reference")
        shapes: dict[str, tuple[str | int, ...]] = {"centre": ("d",), "below": ("d",), "above": ("d",)}
        if self.transform == "rank":
            shapes |= {"knots": ("k", "d"), "levels": ("k", "d")}
        kept = restored(self, own, shapes, positive=("below", "above"))
        return FittedTransformed(Steps(self.transform, **kept), restored_inside(self.reference, inside))


@dataclass(frozen=True, eq=False)
class Steps:
    """One increasing function per column.

    Args:
        transform: its name.
        centre: (d,) where it is 0: the trusted median, or 0.
        below: (d,) unit below the centre; for "rank" the slope's inverse below the trusted range.
        above: (d,) the same above.
        knots: (k, d) trusted quantiles, for "rank".
        levels: (k, d) their normal scores.
    """

    transform: str
    centre: Array
    below: Array
    above: Array
    knots: Array | None = None
    levels: Array | None = None

    def __post_init__(self) -> None:
        for array in (self.centre, self.below, self.above, self.knots, self.levels):
            if array is not None:
                frozen(array)

    def __call__(self, rows: Array) -> Array:
        """Transformed rows (n, d)."""
        if self.knots is None or self.levels is None:
            with np.errstate(over="ignore"):  # an overflow is infinite, and infinity is clipped
                steps = np.clip((rows - self.centre) / self.above, -_LARGEST, _LARGEST)
            return steps if self.transform == "robust" else np.sign(steps) * np.log1p(np.abs(steps))
        found = np.empty_like(rows)
        for j, x in enumerate(rows.T):
            knots, levels = self.knots[:, j], self.levels[:, j]
            found[:, j] = np.interp(x, knots, levels)
            # Beyond the range: from the outermost level on, in the unit of that side.
            with np.errstate(over="ignore"):
                found[:, j] += np.minimum(x - knots[0], 0.0) / self.below[j]
                found[:, j] += np.maximum(x - knots[-1], 0.0) / self.above[j]
        return np.clip(found, -_LARGEST, _LARGEST)


@dataclass(frozen=True, eq=False)
class FittedTransformed:
    """A reference that was fitted on transformed rows.

    Args:
        steps: the transform of each column.
        reference: the fitted reference.
    """

    steps: Steps
    reference: FittedReference

    def score_samples(self, X: npt.ArrayLike) -> Array:
        """Normality (n,) of the rows of ``X`` (n, d): higher = more normal.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        return np.asarray(self.reference.score_samples(self.transformed(X)), dtype=np.float64)

    @property
    def contributions(self) -> Callable[[npt.ArrayLike], Array]:
        """Contributions (n, d) of the columns, which the transform leaves in their places, to the anomaly score.

        Raises:
            AttributeError: where the reference inside has none, so that this one has none either.
        """
        inside: Callable[[npt.ArrayLike], Array] = self.reference.contributions  # type: ignore[attr-defined]
        return lambda X: inside(self.transformed(X))

    def transformed(self, X: npt.ArrayLike) -> Array:
        """The rows (n, d) as the reference inside sees them."""
        return self.steps(as_rows(X, what="rows to score", columns=len(self.steps.centre), error=InputsError))

    def state(self) -> dict[str, Array]:
        """Arrays that `Transformed.restore` takes.

        Raises:
            StoreError: where the reference inside has none, as scikit-learn's estimators.
        """
        own = {name: getattr(self.steps, name) for name in ("centre", "below", "above", "knots", "levels")}
        kept = {name: array for name, array in own.items() if array is not None}
        return {**kept, **nested_state("reference", self.reference)}


def _steps(rows: Array, table: Summary, transform: str) -> Steps:
    """The transform of each column, from trusted rows."""
    constant, scale = table.constant, table.scale
    if transform == "signed-log":
        size = np.where(rows == 0, np.nan, np.abs(rows))
        empty = np.isnan(size).all(axis=0)
        size[:, empty] = 1.0
        unit = np.nanmedian(size, axis=0)
        unit[empty] = np.median(unit[~empty]) if not empty.all() else 1.0
        return Steps(transform, np.zeros(len(unit)), unit, unit)
    # Constant columns in their own size: the reference inside gives them a thousandth of the usual spread, which is 1.
    own = 1000 * constant_units(table.moments.mean, scale[~constant])
    centre = np.where(constant, table.moments.mean, np.median(rows, axis=0))
    if transform == "robust":
        deviation = 1.4826 * np.median(np.abs(rows - centre), axis=0)
        unit = np.where(constant, own, np.where(deviation > 0, deviation, scale))
        return Steps(transform, centre, unit, unit)
    return _rank_steps(rows, centre, constant, np.where(constant, own, scale))


def _rank_steps(rows: Array, centre: Array, constant: npt.NDArray[np.bool_], unit: Array) -> Steps:
    """Normal scores at trusted quantiles, and the units in which they go on outside."""
    from scipy.special import ndtri

    n = len(rows)
    knots = np.sort(rows, axis=0)
    scores = ndtri((np.arange(n) + 0.5) / n)
    places = np.unique(np.linspace(0, n - 1, min(n, _KNOTS)).round().astype(np.int64))
    levels = np.empty((n, rows.shape[1]))
    below, above = unit.copy(), unit.copy()
    for j, x in enumerate(knots.T):
        # Equal trusted values have one level: the middle of theirs.
        first, last = np.searchsorted(x, x, "left"), np.searchsorted(x, x, "right") - 1
        levels[:, j] = ndtri((first + last + 1) / (2 * n))
        if constant[j]:
            knots[:, j], levels[:, j] = centre[j], 0.0
            continue
        # Columns most of whose values are the smallest have no distance from there to the median: the other side's.
        sides = [(centre[j] - x[0], -levels[0, j]), (x[-1] - centre[j], levels[-1, j])]
        slopes = [distance / -scores[0] if rise <= 0 else distance / rise for distance, rise in sides]
        usual = max(slopes)
        below[j], above[j] = (slope if slope > 0 else usual for slope in slopes)
    return Steps("rank", centre, below, above, knots[places], levels[places])
