"""Empirical tail probabilities of the columns, combined by the Cauchy combination."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from causalmad.errors import FitError, InputsError
from causalmad.references.base import as_rows, resolution
from causalmad.references.state import frozen, restored
from causalmad.references.whitening import spread_of

Array = npt.NDArray[np.float64]

_TAIL = 0.1  # share of the trusted rows, on each side, that gives the unit of distance beyond the range
_LEAST_UNIT = 1e-2  # of the column's unit: a tail of equal values still has a width
_SAME = 1e-2  # of a constant column's unit: up to here a value is the constant, up to rounding


@dataclass(frozen=True)
class EmpiricalTails:
    """How far out in the trusted rows' own tails each column is, with no assumption on its distribution.

    With n trusted values of a column, a value x has the upper tail probability ``(1 + #{trusted >= x}) / (n + 1)``, and
    likewise the lower one: trusted values that equal x count against flagging. Two-sided, p is twice the smaller of the
    two, at most 1. The columns are combined by the Cauchy combination, whose statistic is the anomaly score:

        mean over columns of tan((1/2 - p_j) pi),    with the p-value 1/2 - arctan(score) / pi

    which holds for small p-values however the columns depend on each other. It looks at one column at a time: a row
    whose columns are each usual but not together is normal here (`Mahalanobis` sees that).

    Beyond the trusted range all values would have the same 1 / (n + 1). There the tail probability goes on as
    ``1 / (n + 1) / (1 + e / s)``, with e the distance beyond the range and s the mean distance of the outermost tenth
    of the trusted values from the value at which that tenth begins. That is a Pareto tail with the index of the Cauchy
    distribution: cautious, and a column's term grows linearly with e.

    Args:
        two_sided: whether low values are odd too; otherwise high ones alone are.

    References:
        Liu, Xie 2020, J. American Statistical Association 115 (Cauchy combination). Li, Zhao, Hu, Botta, Ionescu, Chen
        2022, arXiv 2201.00382 (ECOD: empirical tails without the continuation).
    """

    two_sided: bool = True

    def fit(self, X: npt.ArrayLike) -> FittedTails:
        """The fit on trusted rows ``X`` (n, d), n at least 2.

        Raises:
            FitError: where ``X`` is no table of finite numbers, or has too few rows.
        """
        rows = as_rows(X, what="trusted rows")
        if len(rows) < 2:
            raise FitError(f"got {len(rows)} trusted row{'s' * (len(rows) != 1)}", needed="at least 2, better 100")
        units, constant = spread_of(rows, resolution(X))
        values = np.sort(np.where(constant, units.mean, rows), axis=0)
        count = max(1, round(_TAIL * len(values)))
        least = _LEAST_UNIT * units.scale
        upper = np.maximum((values[-count:] - values[-count - 1]).mean(axis=0), least)
        lower = np.maximum((values[count] - values[:count]).mean(axis=0), least)
        return FittedTails(values, lower, upper, np.where(constant, _SAME * units.scale, 0.0), self.two_sided)

    def restore(self, state: Mapping[str, npt.ArrayLike]) -> FittedTails:
        """The fit that ``state`` was taken from, with the same scores to the last bit.

        Raises:
            StoreError: where an array is missing, or has another shape or broken numbers.
        """
        shapes = {"values": ("n", "d"), "lower": ("d",), "upper": ("d",), "same": ("d",)}
        kept = restored(self, state, shapes, positive=("lower", "upper"))
        return FittedTails(kept["values"], kept["lower"], kept["upper"], kept["same"], self.two_sided)


@dataclass(frozen=True, eq=False)
class FittedTails:
    """The trusted values of every column.

    Args:
        values: (n, d) trusted values, each column sorted.
        lower: (d,) unit of the distance below the trusted range.
        upper: (d,) unit of the distance above it.
        same: (d,) how far from a constant column's value still counts as that value; 0 for the others.
        two_sided: whether low values are odd too.
    """

    values: Array
    lower: Array
    upper: Array
    same: Array
    two_sided: bool = True

    def __post_init__(self) -> None:
        frozen(self.values, self.lower, self.upper, self.same)

    def tail_probabilities(self, X: npt.ArrayLike) -> Array:
        """Tail probability (n, d) of every column of the rows of ``X`` (n, d), two-sided where the spec says so.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        rows = as_rows(X, what="rows to score", columns=self.values.shape[1], error=InputsError)
        rows = np.where(np.abs(rows - self.values[0]) <= self.same, self.values[0], rows)
        n = len(self.values)
        above = np.stack([n - np.searchsorted(v, x, "left") for v, x in zip(self.values.T, rows.T)], axis=1)
        tails = _continued(above, n, (rows - self.values[-1]) / self.upper)
        if self.two_sided:
            below = np.stack([np.searchsorted(v, x, "right") for v, x in zip(self.values.T, rows.T)], axis=1)
            tails = np.minimum(2 * np.minimum(tails, _continued(below, n, (self.values[0] - rows) / self.lower)), 1.0)
        return tails

    def score_samples(self, X: npt.ArrayLike) -> Array:
        """Normality (n,) of the rows of ``X`` (n, d): less the Cauchy combination of the tail probabilities.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        scores: Array = -self.contributions(X).sum(axis=1)
        return scores

    def contributions(self, X: npt.ArrayLike) -> Array:
        """Each column's Cauchy term over d (n, d); they sum to the score, and are negative for p above 1/2.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        tails = self.tail_probabilities(X)
        # p = 1 would be minus infinity. tan((1/2 - p) pi) is 1 / tan(p pi), which loses no digits for a small p.
        most = 1 - 1 / (len(self.values) + 1)
        terms: Array = 1 / np.tan(np.pi * np.minimum(tails, most)) / tails.shape[1]
        return np.ascontiguousarray(terms)

    def state(self) -> dict[str, Array]:
        """Arrays that `EmpiricalTails.restore` takes."""
        return {"values": self.values, "lower": self.lower, "upper": self.upper, "same": self.same}


def _continued(beyond: npt.NDArray[np.int64], n: int, distance: Array) -> Array:
    """Tail probabilities from the count of trusted values at least as far out, and the distance beyond the range."""
    tails: Array = (1 + beyond) / (n + 1) / (1 + np.clip(distance, 0.0, 1e100))
    return tails
