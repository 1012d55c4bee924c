"""Distance to the k-th nearest trusted row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.config import require_options
from causalmad.errors import FitError, InputsError, SpecError, StoreError
from causalmad.references.base import as_rows, resolution
from causalmad.references.covariance import Spread
from causalmad.references.state import frozen, restored
from causalmad.references.whitening import spread_of

Array = npt.NDArray[np.float64]

_MOST_NEIGHBOURS = 50


@dataclass(frozen=True)
class NearestNeighbours:
    """Euclidean distance to the k-th nearest trusted row.

    Columns are in units of their trusted standard deviation (a column that is constant on the trusted rows gets a small
    unit, so that to leave it is anomalous). The trusted rows are kept as they are: one of them that is scored again
    finds itself first, and so looks more normal than a new row does. Calibrate on other rows, as `Detector` does.

    Args:
        k: which neighbour; by default the square root of the number of trusted rows, and at most 50.
        normalise: divide every row, in those units, by its length, as the paper does with penultimate features. The
            distance then compares directions only.
        most: with more trusted rows than this, a drawn sample of as many is kept.

    References:
        Sun, Ming, Zhu, Li 2022, arXiv 2204.06507.
    """

    k: int | None = None
    normalise: bool = False
    most: int = 20_000

    def __post_init__(self) -> None:
        require_options(self)
        if self.k is not None and self.k < 1:
            raise SpecError(f"k={self.k!r}", needed="a whole number of at least 1, or None")
        if self.most < 1:
            raise SpecError(f"most={self.most!r}", needed="a whole number of at least 1")

    def fit(self, X: npt.ArrayLike, *, seed: int = 0) -> FittedNeighbours:
        """The fit on trusted rows ``X`` (n, d); ``seed`` draws the sample where there are more than ``most``.

        Raises:
            FitError: where ``X`` is no table of finite numbers, or has fewer than max(k, 2) rows.
        """
        rows = as_rows(X, what="trusted rows")
        kept = min(len(rows), self.most)
        k = self.k if self.k is not None else min(_MOST_NEIGHBOURS, max(1, round(kept**0.5)))
        if len(rows) < 2 or kept < k:
            raise FitError(f"got {kept} trusted rows for k={k}", needed=f"at least {max(k, 2)} rows", tries=["k=1"])
        units, _ = spread_of(rows, resolution(X))
        if len(rows) > kept:
            rows = rows[np.sort(np.random.default_rng([seed, 61]).choice(len(rows), kept, replace=False))]
        points = _points(units, rows, self.normalise)
        return FittedNeighbours(units.mean, units.scale, points, k, self.normalise)

    def restore(self, state: Mapping[str, npt.ArrayLike]) -> FittedNeighbours:
        """The fit that ``state`` was taken from, with the same scores to the last bit.

        Raises:
            StoreError: where an array is missing, or has another shape or broken numbers.
        """
        shapes = {"mean": ("d",), "scale": ("d",), "points": ("n", "d"), "k": (1,)}
        kept = restored(self, state, shapes, positive=("scale", "k"))
        k = int(kept["k"][0])
        if k > len(kept["points"]):
            raise StoreError(f"k is {k} with {len(kept['points'])} rows", needed="a neighbour that there is")
        return FittedNeighbours(kept["mean"], kept["scale"], kept["points"], k, self.normalise)


@dataclass(frozen=True, eq=False)
class FittedNeighbours:
    """Trusted rows to measure distances from.

    Args:
        mean: (d,) trusted mean.
        scale: (d,) unit of each column.
        points: (n, d) trusted rows in those units, of length 1 where ``normalise``.
        k: which neighbour.
        normalise: whether rows are divided by their length.
    """

    mean: Array
    scale: Array
    points: Array
    k: int
    normalise: bool = False

    def __post_init__(self) -> None:
        frozen(self.mean, self.scale, self.points)

    def score_samples(self, X: npt.ArrayLike) -> Array:
        """Normality (n,) of the rows of ``X`` (n, d): less the distance to the k-th nearest trusted row.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        return -self._nearest(self._rows(X))[0]

    def contributions(self, X: npt.ArrayLike) -> Array:
        """Contributions (n, d) that sum to the distance: each column's share of its square, times the distance.

        They are of the columns in which the row differs from its k-th nearest trusted row; zero where it does not.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        rows = self._rows(X)
        distances, places = self._nearest(rows)
        squares = (rows - self.points[places]) ** 2
        shares: Array = np.divide(squares, distances[:, None], out=np.zeros_like(squares), where=distances[:, None] > 0)
        return shares

    def state(self) -> dict[str, Array]:
        """Arrays that `NearestNeighbours.restore` takes."""
        return {"mean": self.mean, "scale": self.scale, "points": self.points, "k": np.array([float(self.k)])}

    @cached_property
    def _tree(self) -> Any:
        from sklearn.neighbors import NearestNeighbors as Neighbours

        # A tree measures row by row. Brute force multiplies matrices, and its last bits depend on the whole batch.
        return Neighbours(n_neighbors=self.k, algorithm="kd_tree").fit(self.points)

    def _rows(self, X: npt.ArrayLike) -> Array:
        rows = as_rows(X, what="rows to score", columns=len(self.mean), error=InputsError)
        return _points(Spread(self.mean, self.scale, np.ones_like(self.scale), 0.0), rows, self.normalise)

    def _nearest(self, rows: Array) -> tuple[Array, npt.NDArray[np.int64]]:
        """Distance to the k-th nearest point (n,), and which point it is (n,)."""
        if not len(rows):
            return np.empty(0), np.empty(0, dtype=np.int64)
        distances, places = self._tree.kneighbors(rows)
        return distances[:, -1], places[:, -1]


def _points(units: Spread, rows: Array, normalise: bool) -> Array:
    points = units.standardised(rows)
    if normalise:
        lengths = np.sqrt((points**2).sum(axis=1, keepdims=True))
        points = np.divide(points, lengths, out=np.zeros_like(points), where=lengths > 0)
    return points
