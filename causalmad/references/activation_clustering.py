"""Two clusters of the untrusted rows, and which of them a row is nearer to."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from causalmad.config import require_options
from causalmad.errors import InputsError, SpecError
from causalmad.references.base import as_rows, resolution
from causalmad.references.pool import trusted_and_pool
from causalmad.references.state import frozen, restored
from causalmad.references.whitening import Leading, leading, spread_of

Array = npt.NDArray[np.float64]

_TINY = 1e-12  # squared distances below this, in trusted units, count as this


@dataclass(frozen=True)
class ActivationClustering:
    """Log-ratio of the distances to the two clusters of the untrusted rows (offline).

    Untrusted rows, in trusted units, are projected on their leading principal directions and divided by 2-means. The
    anomalous cluster is the one whose centre is farther from the mean of the trusted rows; the paper, which has no
    trusted rows, takes the smaller one, and so is misled where anomalies are many or normal rows have two clusters. The
    anomaly score is ``log(distance to the normal centre / distance to the anomalous centre)``: 0 half way. The rows of
    all predicted classes are taken together (the paper does it by class, which untrusted rows here do not have).

    2-means always finds two clusters: where the pool has no anomalies, it divides the normal rows. The score is no sum
    over columns, so there are no contributions.

    Args:
        components: the most principal directions.

    References:
        Chen, Carvalho, Baracaldo, Ludwig, Edwards, Lee, Molloy, Srivastava 2018, arXiv 1811.03728.
    """

    components: int = 10

    def __post_init__(self) -> None:
        require_options(self)
        if self.components < 1:
            raise SpecError(f"components={self.components!r}", needed="a whole number of at least 1")

    def fit(
        self, X: npt.ArrayLike, *, untrusted: npt.ArrayLike | None = None, seed: int = 0
    ) -> FittedActivationClustering:
        """The fit on trusted rows ``X`` (n, d) and unlabelled ``untrusted`` rows (m, d); ``seed`` starts 2-means.

        Raises:
            FitError: where there are no untrusted rows, or either is no table of at least two rows of finite numbers.
        """
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        rows, pool = trusted_and_pool(X, untrusted, self)
        units, _ = spread_of(rows, resolution(X))
        basis = leading(pool, units, self.components, whiten=False)
        points = basis.coordinates(pool)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # equal rows are one cluster, and then score 0
            centres = KMeans(2, n_init=10, random_state=seed % 2**32).fit(points).cluster_centers_
        trusted = basis.coordinates(rows)[0].mean(axis=0)
        order = np.argsort(((centres - trusted) ** 2).sum(axis=1), kind="stable")
        return FittedActivationClustering(basis, np.ascontiguousarray(centres[order], dtype=np.float64))

    def restore(self, state: Mapping[str, npt.ArrayLike]) -> FittedActivationClustering:
        """The fit that ``state`` was taken from, with the same scores to the last bit.

        Raises:
            StoreError: where an array is missing, or has another shape or broken numbers.
        """
        shapes = {"mean": ("d",), "scale": ("d",), "directions": ("k", "d"), "deviations": ("k",), "centres": (2, "k")}
        kept = restored(self, state, shapes, positive=("scale", "deviations"))
        basis = Leading(kept["mean"], kept["scale"], kept["directions"], kept["deviations"])
        return FittedActivationClustering(basis, kept["centres"])


@dataclass(frozen=True, eq=False)
class FittedActivationClustering:
    """Two centres.

    Args:
        basis: the leading directions of the untrusted rows.
        centres: (2, k) the normal centre, then the anomalous one.
    """

    basis: Leading
    centres: Array

    def __post_init__(self) -> None:
        frozen(self.centres)

    def score_samples(self, X: npt.ArrayLike) -> Array:
        """Normality (n,) of the rows of ``X`` (n, d): less the log-ratio of the distances.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        rows = as_rows(X, what="rows to score", columns=len(self.basis.mean), error=InputsError)
        points = self.basis.coordinates(rows)[0]
        normal, anomalous = (np.maximum(((points - centre) ** 2).sum(axis=1), _TINY) for centre in self.centres)
        normality: Array = (np.log(anomalous) - np.log(normal)) / 2
        return normality

    def state(self) -> dict[str, Array]:
        """Arrays that `ActivationClustering.restore` takes."""
        basis = self.basis
        return {
            "mean": basis.mean,
            "scale": basis.scale,
            "directions": basis.directions,
            "deviations": basis.deviations,
            "centres": self.centres,
        }
