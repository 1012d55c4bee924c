"""Distance within the leading principal components, and what is left over beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from causalmad.config import require_options
from causalmad.errors import FitError, InputsError, SpecError
from causalmad.references.base import as_rows
from causalmad.references.chunks import Chunks, Passes, in_folds
from causalmad.references.covariance import Summary, moments_without_folds
from causalmad.references.state import frozen, restored

Array = npt.NDArray[np.float64]

_FOLDS = 5
_LEAST = 1e-6  # of the total variance: the mean residual is not taken to be smaller
_LARGEST = 1e100  # standardised values stop here, so that no square of them overflows


@dataclass(frozen=True)
class PrincipalComponents:
    """Mahalanobis distance in the leading components, plus the residual energy beside them.

    With r a row in units of the trusted means and standard deviations, V the k leading principal components of the
    trusted rows and w their variances, the anomaly score is

        sum over components of (V^T r)_i^2 / w_i    +    |r - V V^T r|^2 / m

    where m is the mean residual energy of trusted rows: rows that the components have not seen (5 folds), since the
    residual of rows that they were fitted on is too small, and none at all where there are fewer rows than columns. The
    second term is what a distance in the leading components alone misses: anomalies often lie in directions of small
    variance.

    Columns that are constant on the trusted rows stand beside the components: each adds the square of its departure, in
    units of a thousandth of its size.

    Args:
        components: k, or the share of the trusted variance that the components shall hold, below 1.

    References:
        Jackson, Mudholkar 1979, Technometrics 21 (residual energy). Shyu, Chen, Sarinnapakorn, Chang 2003 (principal
        component classifier).
    """

    components: int | float = 0.95

    def __post_init__(self) -> None:
        require_options(self)
        whole = isinstance(self.components, int) and self.components >= 1
        if isinstance(self.components, bool) or not (whole or 0 < self.components < 1):
            raise SpecError(
                f"components={self.components!r}",
                needed="a whole number of at least 1, or a share between 0 and 1",
                tries=["components=0.95", "components=10"],
            )

    def fit(self, X: npt.ArrayLike) -> FittedPrincipalComponents:
        """The fit on trusted rows ``X`` (n, d), n at least 3.

        Raises:
            FitError: where ``X`` is no table of finite numbers, or has too few rows.
        """
        return self.fit_chunks(X if isinstance(X, np.ndarray) else as_rows(X, what="trusted rows"))

    def fit_chunks(self, chunks: Chunks) -> FittedPrincipalComponents:
        """The fit on trusted rows that need not fit into memory; the same as `fit` on all of them.

        Args:
            chunks: a table or memory map (n, d), an iterable of tables (m, d), or a function that returns a new
                iterator over them; read three times.

        Raises:
            FitError: where a chunk is no table of finite numbers, rows are too few, or a one-shot iterator is given.
        """
        rows = Passes(chunks)
        table = Summary.of(rows)
        n, d = table.moments.n, table.moments.d
        if n < 3:
            raise FitError(f"got {n} trusted row{'s' * (n != 1)}", needed=f"at least 3 rows, and better {10 * d}")
        varying = ~table.constant
        vectors, variances, unit = np.zeros((0, d)), np.zeros(0), 1.0
        if varying.any():
            leading, variances = _components(table.correlation(), n, self.components)
            vectors = np.zeros((len(leading), d))
            vectors[:, varying] = leading
            unit = max(_left_over(rows, table, len(leading)), _LEAST * float(varying.sum()))
        weight = np.where(varying, 1 / unit, 1.0)
        return FittedPrincipalComponents(table.moments.mean, table.scale, vectors, variances, weight)

    def restore(self, state: Mapping[str, npt.ArrayLike]) -> FittedPrincipalComponents:
        """The fit that ``state`` was taken from, with the same scores to the last bit.

        Raises:
            StoreError: where an array is missing, or has another shape or broken numbers.
        """
        k = np.size(state.get("variances", ()))
        shapes = {"mean": ("d",), "scale": ("d",), "vectors": (k, "d"), "variances": (k,), "weight": ("d",)}
        kept = restored(self, state, shapes, positive=("scale", "weight", "variances"))
        return FittedPrincipalComponents(**kept)


@dataclass(frozen=True, eq=False)
class FittedPrincipalComponents:
    """Leading components of the trusted rows.

    Args:
        mean: (d,) trusted mean.
        scale: (d,) trusted unit.
        vectors: (k, d) components, in standardised columns; 0 for constant columns.
        variances: (k,) variance of the standardised rows along each.
        weight: (d,) of each column's squared residual: 1 / m, and 1 for constant columns.
    """

    mean: Array
    scale: Array
    vectors: Array
    variances: Array
    weight: Array

    def __post_init__(self) -> None:
        frozen(self.mean, self.scale, self.vectors, self.variances, self.weight)

    def score_samples(self, X: npt.ArrayLike) -> Array:
        """Normality (n,) of the rows of ``X`` (n, d): higher = more normal, never above 0.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        scores: Array = -np.maximum(self.contributions(X).sum(axis=1), 0.0)
        return scores

    def contributions(self, X: npt.ArrayLike) -> Array:
        """Contributions (n, d) that sum over columns to the anomaly score.

        They are ``r_j (V diag(1 / w) V^T r)_j`` and the column's squared residual over m.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        within, beside = self._parts(X)
        found: Array = within + beside
        return found

    def residuals(self, X: npt.ArrayLike) -> Array:
        """The second term of the score (n,) alone: about 1 for trusted rows, and more off the components."""
        found: Array = self._parts(X)[1].sum(axis=1)
        return found

    def state(self) -> dict[str, Array]:
        """Arrays that `PrincipalComponents.restore` takes."""
        return {name: getattr(self, name) for name in ("mean", "scale", "vectors", "variances", "weight")}

    def _parts(self, X: npt.ArrayLike) -> tuple[Array, Array]:
        rows = as_rows(X, what="rows to score", columns=len(self.mean), error=InputsError)
        with np.errstate(over="ignore"):
            r = np.clip((rows - self.mean) / self.scale, -_LARGEST, _LARGEST)
        # One product per row: its last bits must not depend on the rows that come with it.
        along = np.matmul(self.vectors, r[:, :, None])
        rest = r - np.matmul(self.vectors.T, along)[:, :, 0]
        within = r * np.matmul(self.vectors.T, along / self.variances[:, None])[:, :, 0]
        return within, rest**2 * self.weight


def _components(covariance: Array, n: int, components: int | float) -> tuple[Array, Array]:
    """Leading components (k, d) and their variances (k,), those without any left out.

    As scikit-learn's PCA has them, from the covariance (divided by n) of n rows: the rows themselves can be many.
    """
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values[::-1], 0.0)
    if isinstance(components, int):
        count = components
    else:
        count = int(np.searchsorted(np.cumsum(values), components * values.sum(), side="right")) + 1
    known = int((values > 1e-12 * values[0]).sum())
    count = min(count, known, n - 1)
    return np.ascontiguousarray(vectors[:, ::-1].T[:count]), values[:count] * n / (n - 1)


def _left_over(rows: Iterable[Array], table: Summary, count: int) -> float:
    """Mean residual energy of the rows beside the leading components of the rows outside their fold."""
    varying = ~table.constant
    others = moments_without_folds(rows, table, _FOLDS)
    bases = [_components(table.correlation(other), other.n, count)[0] for other in others]
    total = 0.0
    for chunk, fold in in_folds(rows, table.moments.n, _FOLDS):
        for k, (other, basis) in enumerate(zip(others, bases)):
            z = ((chunk[fold == k] - other.mean) / table.scale)[:, varying]
            total += float(((z - z @ basis.T @ basis) ** 2).sum())
    return total / table.moments.n
