"""Mahalanobis distance to the nearest predicted class, less the distance from all trusted rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from causalmad.config import require_options
from causalmad.errors import FitError, InputsError, SpecError
from causalmad.moments import Moments
from causalmad.references.base import as_rows, resolution
from causalmad.references.covariance import (
    Spread,
    Summary,
    constant_columns,
    constant_units,
    inverse,
    shrinkage_of,
)
from causalmad.references.state import frozen, restored

Array = npt.NDArray[np.float64]

SHRUNK = ("ledoit-wolf", "oas", "empirical")

_LEAST = 2  # rows of a class; rarer classes are taken together


@dataclass(frozen=True)
class RelativeMahalanobis:
    """Distance from the nearest predicted class, less the distance from the background of all classes.

    The anomaly score of a row is ``min_k MD_k - MD_0``. MD_k is the squared Mahalanobis distance from the mean of class
    k, with one covariance W within classes for all of them; MD_0 is that from the mean and covariance T of all rows.
    Directions in which all inputs vary alike, and which say nothing of the class, cancel.

    Both covariances are averages over the same rows (divided by n), in the same units (standard deviations within
    classes), shrunk by the same share rho to the identity: T = W + (1 - rho) B, with B the covariance of the class
    means. So T is never below W, and no row is far from the background yet near all classes. Scores can be negative.

    The classes are those that the model predicts for the trusted rows; new rows need none. Predicted classes with a
    single row are taken together as one class; where this class has a single row as well, its row counts for the
    background only.

    Args:
        covariance: "ledoit-wolf" or "oas" (analytic shrinkage, from rows less their class mean), or "empirical" (none).
        rcond: eigenvalues of W below this share of the largest are raised to it.

    References:
        Ren, Fort, Liu, Roy, Padhy, Lakshminarayanan 2021, arXiv 2106.09022.
    """

    covariance: str = "ledoit-wolf"
    rcond: float = 1e-6

    def __post_init__(self) -> None:
        require_options(self)
        if self.covariance not in SHRUNK:
            raise SpecError(f"covariance={self.covariance!r} is unknown", needed=", ".join(SHRUNK))
        if not 0 < self.rcond < 1:
            raise SpecError(f"rcond={self.rcond!r}", needed="a number between 0 and 1", tries=["rcond=1e-6"])

    def fit(self, X: npt.ArrayLike, *, classes: npt.ArrayLike | None = None) -> FittedRelativeMahalanobis:
        """The fit on trusted rows.

        Args:
            X: (n, d) trusted rows.
            classes: (n,) whole numbers, the class that the model predicts for each row.

        Raises:
            FitError: where ``X`` is no table of finite numbers, or the classes are missing, or fewer than two.
        """
        rows = as_rows(X, what="trusted rows")
        labels = _labels(classes, len(rows))
        found, counts = np.unique(labels, return_counts=True)
        rare = np.isin(labels, found[counts < _LEAST])
        places = np.where(rare, -1, np.searchsorted(found, labels))
        kept = [place for place in np.unique(places) if (places == place).sum() >= _LEAST]
        if len(kept) < 2:
            raise FitError(
                f"{len(rows)} trusted rows have {len(kept)} predicted class{'es' * (len(kept) != 1)} of at least "
                f"{_LEAST} rows: the distance from a class and from all rows is the same",
                needed="at least two classes that the model predicts for trusted rows",
                tries=["causalmad.references.Mahalanobis()", "more trusted inputs"],
            )
        inside = np.isin(places, kept)
        means = np.stack([_mean(rows[places == place]) for place in kept])
        own = means[np.searchsorted(kept, places[inside])]
        with np.errstate(over="ignore", invalid="ignore"):
            within = Moments.of([rows[inside] - own], rows.shape[1])
            total = Moments.of([rows], rows.shape[1])
        if not (np.isfinite(within.scatter).all() and np.isfinite(total.scatter).all()):
            raise FitError(f"the trusted rows reach {np.abs(rows).max():.3g}, and the square of that overflows")

        eps = resolution(X)
        constant = np.all([constant_columns(rows[places == place], eps) for place in kept], axis=0)
        deviation = np.sqrt(np.diagonal(within.covariance(ddof=0)))
        scale = np.where(constant, constant_units(total.mean, deviation[~constant]), deviation)
        table = Summary(within, constant, scale)
        correlation = table.correlation()
        rho = shrinkage_of([rows[inside] - own], table, correlation, self.covariance)
        narrow = inverse((1 - rho) * correlation + rho * np.eye(len(correlation)), constant, self.rcond)
        between = (total.covariance(ddof=0) - within.covariance(ddof=0)) / scale / scale[:, None]
        values, vectors = np.linalg.eigh((between + between.T) / 2)
        between = (vectors * np.maximum(values, 0.0)) @ vectors.T
        wide = np.linalg.inv(np.linalg.inv(narrow) + (1 - rho) * between)
        return FittedRelativeMahalanobis(
            means, Spread(total.mean, scale, narrow, rho), Spread(total.mean, scale, (wide + wide.T) / 2, rho)
        )

    def restore(self, state: Mapping[str, Array]) -> FittedRelativeMahalanobis:
        """The fit that ``state`` was taken from, with the same scores to the last bit.

        Raises:
            StoreError: where an array is missing, or has another shape or broken numbers.
        """
        square = {"within": ("d", "d"), "background": ("d", "d")}
        shapes = {"means": ("k", "d"), "mean": ("d",), "scale": ("d",), "shrinkage": (1,), **square}
        kept = restored(self, state, shapes, positive=("scale",))
        rho = float(kept["shrinkage"][0])
        narrow, wide = (Spread(kept["mean"], kept["scale"], kept[name], rho) for name in square)
        return FittedRelativeMahalanobis(kept["means"], narrow, wide)


@dataclass(frozen=True, eq=False)
class FittedRelativeMahalanobis:
    """Distances from the classes and from the background of trusted rows.

    Args:
        means: (classes, d) mean of each class.
        within: spread within classes, around the mean of all rows.
        background: spread of all rows.
    """

    means: Array
    within: Spread
    background: Spread

    def __post_init__(self) -> None:
        frozen(self.means, self.within.mean, self.within.scale, self.within.precision, self.background.precision)

    def score_samples(self, X: npt.ArrayLike) -> Array:
        """Normality (n,) of the rows of ``X`` (n, d): higher = more normal.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        scores: Array = -self._shares(X).sum(axis=1)
        return scores

    def contributions(self, X: npt.ArrayLike) -> Array:
        """Contributions (n, d) that sum over columns to the anomaly score.

        They are those to the nearest class's distance, less those to the background's.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        return self._shares(X)

    def nearest(self, X: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Place (n,) of the nearest class in ``means``, for the rows of ``X``."""
        return self._nearest(self._rows(X))[0]

    def state(self) -> dict[str, Array]:
        """Arrays that `RelativeMahalanobis.restore` takes."""
        return {
            "means": self.means,
            "mean": self.within.mean,
            "scale": self.within.scale,
            "within": self.within.precision,
            "background": self.background.precision,
            "shrinkage": np.array([self.within.shrinkage]),
        }

    def _rows(self, X: npt.ArrayLike) -> Array:
        return as_rows(X, what="rows to score", columns=self.means.shape[1], error=InputsError)

    def _nearest(self, rows: Array) -> tuple[npt.NDArray[np.int64], Array]:
        best = np.full(len(rows), np.inf)
        place, shares = np.zeros(len(rows), dtype=np.int64), np.zeros_like(rows)
        for k, mean in enumerate(self.means):
            own = replace(self.within, mean=mean).shares(rows)
            distances = own.sum(axis=1)
            closer = distances < best
            best[closer], place[closer], shares[closer] = distances[closer], k, own[closer]
        return place, shares

    def _shares(self, X: npt.ArrayLike) -> Array:
        rows = self._rows(X)
        found: Array = self._nearest(rows)[1] - self.background.shares(rows)
        return found


def _mean(rows: Array) -> Array:
    """Mean (d,) of rows, exact where a column holds one value."""
    mean: Array = rows[0] + (rows - rows[0]).mean(axis=0)
    return mean


def _labels(classes: npt.ArrayLike | None, count: int) -> npt.NDArray[np.int64]:
    if classes is None:
        raise FitError(
            "RelativeMahalanobis got no classes",
            needed="the class that the model predicts for each trusted row",
            causes=["the model's output has no classes", "fit was called without a detector"],
            tries=[
                "Detector(signature, RelativeMahalanobis()) on a model that predicts classes",
                "RelativeMahalanobis().fit(X, classes=predicted)",
                "causalmad.references.Mahalanobis()",
            ],
        )
    labels = np.asarray(classes)
    if labels.shape != (count,) or labels.dtype.kind not in "iub":
        raise FitError(
            f"the classes have shape {labels.shape} and dtype {labels.dtype}", needed=f"({count},) whole numbers"
        )
    return labels.astype(np.int64)
