"""Mahalanobis distance from the trusted inputs, with well-behaved shrinkage and a two-sided form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from causalmad.config import require_options
from causalmad.errors import FitError, InputsError, SpecError, StoreError, nearest
from causalmad.references.base import as_rows
from causalmad.references.chunks import Chunks, Passes, subsample
from causalmad.references.covariance import (
    Spread,
    Summary,
    left_out_distances,
    low_rank_distances,
    robust_distances,
    robust_spread,
    spread,
)

Array = npt.NDArray[np.float64]

COVARIANCES = ("ledoit-wolf", "oas", "empirical", "diagonal", "low-rank", "robust")
ROBUST_ROWS = 10_000  # rows of which "robust" searches for the half that is least spread

_NO_DISTANCE = 1e-12  # squared distances below this count as this, so that the logarithm is finite


@dataclass(frozen=True)
class Mahalanobis:
    """Squared Mahalanobis distance from the trusted mean.

    The anomaly score of a row x is ``r^T P r``, where r is x in units of the trusted mean and standard deviation and P
    is the inverse of the (shrunk) trusted covariance of r. On d Gaussian columns and many trusted rows it is about
    chi-squared with d degrees of freedom, so d is a typical value. It is not divided by d.

    - Columns are standardised first, so that shrinkage has no units: the target ``tr(S)/d I`` is the identity, and no
      column is shrunk more than another because it is measured in smaller numbers.
    - Nothing is dropped. A column that is constant on the trusted rows gets a unit of a thousandth of its own size
      (for a column of zeros: of the typical standard deviation), and a direction that the trusted rows hardly take
      (duplicate columns, fewer rows than columns) keeps the variance of the cut-off. To depart there is anomalous.
    - A row's score does not depend, to the last bit, on the rows that come with it.

    Args:
        covariance: "ledoit-wolf" or "oas" (analytic shrinkage to the identity), "empirical" (none), "diagonal"
            (columns taken as uncorrelated), "low-rank" (the ``rank`` largest eigenvalues, and the mean of the others in
            all other directions, as in probabilistic PCA), or "robust" (mean and covariance of the half of the rows
            that is least spread, so that a few odd trusted rows move nothing; of more than 10,000 rows, and ten for
            every column, a random sample of that size is searched).
        two_sided: a row closer to the mean than trusted rows are is odd as well. The score is then
            ``|log m - centre| / width``, with m the squared distance, and the centre and width the median and the
            scaled median absolute deviation of log m over trusted rows, each measured from the other trusted rows
            (a row's distance from a fit that has seen it is too small; for "low-rank" and "robust" from a fit on nine
            tenths of them). It is in robust standard deviations.
        rcond: eigenvalues of the standardised covariance below this share of the largest are raised to it.
        rank: eigenvalues that "low-rank" keeps; the other covariances have no use for it.

    References:
        Mahalanobis 1936. Ledoit, Wolf 2004, J. Multivariate Analysis 88. Chen, Wiesel, Eldar, Hero 2010,
        arXiv 0907.4698 (OAS). Tipping, Bishop 1999, J. Royal Statistical Society B 61 (probabilistic PCA). Rousseeuw,
        Van Driessen 1999, Technometrics 41 (minimum covariance determinant). Lee, Lee, Lee, Shin 2018, arXiv 1807.03888
        (on activations).
    """

    covariance: str = "ledoit-wolf"
    two_sided: bool = False
    rcond: float = 1e-6
    rank: int = 16

    def __post_init__(self) -> None:
        require_options(self)
        if self.covariance not in COVARIANCES:
            raise SpecError(
                f"covariance={self.covariance!r} is unknown",
                needed=", ".join(COVARIANCES),
                tries=[f"covariance={name!r}" for name in nearest(str(self.covariance), COVARIANCES)],
            )
        if not 0 < self.rcond < 1:
            raise SpecError(f"rcond={self.rcond!r}", needed="a number between 0 and 1", tries=["rcond=1e-6"])
        if self.rank < 1:
            raise SpecError(f"rank={self.rank!r}", needed="a whole number of at least 1", tries=["rank=16"])

    def fit(self, X: npt.ArrayLike, *, seed: int = 0) -> FittedMahalanobis:
        """The fit on trusted rows ``X`` (n, d), n at least 2.

        Args:
            X: trusted rows.
            seed: seed of "robust"; the other covariances draw nothing.

        Raises:
            FitError: where ``X`` is no table of finite numbers, or has too few rows.
        """
        return self.fit_chunks(X if isinstance(X, np.ndarray) else as_rows(X, what="trusted rows"), seed=seed)

    def fit_chunks(self, chunks: Chunks, *, seed: int = 0) -> FittedMahalanobis:
        """The fit on trusted rows that need not fit into memory; the same as `fit` on all of them.

        Memory for (d, d) numbers and one chunk ("robust": for its sample as well; two-sided: for a number per row).

        Args:
            chunks: a table or memory map (n, d), an iterable of tables (m, d), or a function that returns a new
                iterator over them. "oas", "empirical", "diagonal" and "low-rank" read them once, "ledoit-wolf" and
                "robust" twice, and ``two_sided`` once or twice more.
            seed: seed of "robust"; the other covariances draw nothing.

        Raises:
            FitError: where a chunk is no table of finite numbers, rows are too few, or a one-shot iterator is given
                where a second pass is needed.
        """
        rows = Passes(chunks)
        table = Summary.of(rows)
        n, d = table.moments.n, table.moments.d
        least = 3 if self.two_sided else 2
        if n < least:
            raise FitError(f"got {n} trusted row{'s' * (n != 1)}", needed=f"at least {least} rows, and better {10 * d}")
        if self.two_sided and self.covariance == "empirical" and n < d + 2:
            raise FitError(
                f"got {n} trusted rows of {d} columns",
                needed=f"at least {d + 2} rows: with fewer, every row is equally far from the others' empirical fit",
                tries=['covariance="ledoit-wolf"', "two_sided=False"],
            )
        if self.covariance == "robust":
            sample = subsample(rows, max(ROBUST_ROWS, 10 * d), seed)
            fit = robust_spread(sample, table, self.rcond, seed)
        else:
            fit = spread(rows, table, self.covariance, self.rcond, self.rank)
        if not self.two_sided:
            return FittedMahalanobis(fit)
        if self.covariance == "robust":
            distances = robust_distances(sample, table, self.rcond, seed)
        elif self.covariance == "low-rank":
            distances = low_rank_distances(rows, table, self.rcond, self.rank)
        else:
            distances = left_out_distances(rows, table, fit, self.rcond)
        logs = np.log(np.maximum(distances, _NO_DISTANCE))
        centre = float(np.median(logs))
        width = 1.4826 * float(np.median(np.abs(logs - centre)))
        # Trusted rows that are all equally far have no width: take what d Gaussian columns would have.
        return FittedMahalanobis(fit, (centre, width if width > 1e-9 else float(np.sqrt(2 / d))))

    def restore(self, state: Mapping[str, npt.NDArray[np.float64]]) -> FittedMahalanobis:
        """The fit that ``state`` was taken from, with the same scores to the last bit.

        Raises:
            StoreError: where an array is missing, or has another shape or broken numbers.
        """
        names = {"mean", "scale", "precision", "shrinkage"} | ({"two_sided"} if self.two_sided else set())
        if set(state) != names:
            raise StoreError(f"the state of {self} holds {sorted(state)}", needed=f"exactly {sorted(names)}")
        kept = {name: np.array(array, dtype=np.float64, order="C") for name, array in state.items()}
        d = kept["mean"].size
        square = (d,) if self.covariance == "diagonal" else (d, d)
        shapes = {"mean": (d,), "scale": (d,), "precision": square, "shrinkage": (1,), "two_sided": (2,)}
        for name, array in kept.items():
            if array.shape != shapes[name] or not np.isfinite(array).all():
                raise StoreError(f"{name} has shape {array.shape}", needed=f"{shapes[name]} finite numbers")
        if not (kept["scale"] > 0).all():
            raise StoreError("scale holds numbers that are not above zero", needed="one positive unit per column")
        fit = Spread(kept["mean"], kept["scale"], kept["precision"], float(kept["shrinkage"][0]))
        if not self.two_sided:
            return FittedMahalanobis(fit)
        return FittedMahalanobis(fit, (float(kept["two_sided"][0]), float(kept["two_sided"][1])))


@dataclass(frozen=True, eq=False)
class FittedMahalanobis:
    """Mahalanobis distances from a trusted fit.

    Args:
        spread: trusted mean, units and precision.
        two_sided: centre and width of the trusted log distances, where the score is two-sided.
    """

    spread: Spread
    two_sided: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for array in (self.spread.mean, self.spread.scale, self.spread.precision):
            array.setflags(write=False)

    def score_samples(self, X: npt.ArrayLike) -> Array:
        """Normality (n,) of the rows of ``X`` (n, d): higher = more normal, never above 0.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        return -self._scores(self._shares(X))

    def contributions(self, X: npt.ArrayLike) -> Array:
        """Contributions (n, d) that sum over columns to the anomaly score.

        One-sided, they are ``r_j (P r)_j``; a negative one means that the column makes the row less odd, given the
        others. Two-sided, they are the same shares of the distance, times score / distance: for a row that is too
        typical they say where what distance it has comes from (evenly over columns where it has none).

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        shares = self._shares(X)
        if self.two_sided is None:
            return shares
        distances = shares.sum(axis=1)
        even = np.full_like(shares, 1 / shares.shape[1])
        some = distances > _NO_DISTANCE
        parts = np.divide(shares, distances[:, None], out=even, where=some[:, None])
        contributions: Array = parts * self._scores(shares)[:, None]
        return contributions

    def state(self) -> dict[str, Array]:
        """Arrays that `Mahalanobis.restore` takes."""
        fit = self.spread
        kept = {
            "mean": fit.mean,
            "scale": fit.scale,
            "precision": fit.precision,
            "shrinkage": np.array([fit.shrinkage]),
        }
        return kept if self.two_sided is None else {**kept, "two_sided": np.array(self.two_sided)}

    def _shares(self, X: npt.ArrayLike) -> Array:
        return self.spread.shares(as_rows(X, what="rows to score", columns=len(self.spread.mean), error=InputsError))

    def _scores(self, shares: Array) -> Array:
        distances: Array = np.maximum(shares.sum(axis=1), 0.0)
        if self.two_sided is None:
            return distances
        centre, width = self.two_sided
        scores: Array = np.abs(np.log(np.maximum(distances, _NO_DISTANCE)) - centre) / width
        return scores
