"""Density of the trusted rows along their leading directions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from causalmad.config import require_options
from causalmad.errors import FitError, InputsError, SpecError, nearest
from causalmad.references.base import as_rows, resolution
from causalmad.references.state import frozen, restored
from causalmad.references.whitening import Leading, leading, spread_of

Array = npt.NDArray[np.float64]

METHODS = ("kernel", "mixture")

_MOST_GAUSSIANS = 5
_RIDGE = 1e-3  # added to the variances of the mixture, in whitened units
_AT_ONCE = 256  # rows whose distances to all trusted rows are held at one time


@dataclass(frozen=True)
class Density:
    """Less the log-density of the trusted rows, along their leading directions and beside them.

    Rows are standardised and whitened along the (at most ten) principal directions in which the trusted rows vary most.
    The anomaly score is, in nats,

        - log p(z) + (e - mean e) / sd e

    with z the whitened coordinates and e the squared length of what they leave out (anomalies often lie where trusted
    rows hardly vary, so that part must not be dropped); mean and sd are those of the trusted rows. A density is no sum
    over columns, so there are no contributions.

    Args:
        method: "kernel", a Gaussian kernel estimate with Scott's rule, bandwidth ``n^(-1 / (k + 4))`` in whitened
            units; or "mixture", full Gaussians fitted by scikit-learn, of one to five the number with the lowest BIC.
        components: the most principal directions.

    References:
        Scott 1992, "Multivariate Density Estimation". Schwarz 1978, Annals of Statistics 6 (BIC).
    """

    method: str = "kernel"
    components: int = 10

    def __post_init__(self) -> None:
        require_options(self)
        if self.method not in METHODS:
            raise SpecError(
                f"method={self.method!r} is unknown",
                needed=", ".join(METHODS),
                tries=[f"method={name!r}" for name in nearest(str(self.method), METHODS)],
            )
        if self.components < 1:
            raise SpecError(f"components={self.components!r}", needed="a whole number of at least 1")

    def fit(self, X: npt.ArrayLike, *, seed: int = 0) -> FittedDensity:
        """The fit on trusted rows ``X`` (n, d), n at least 3; ``seed`` starts the mixture.

        Raises:
            FitError: where ``X`` is no table of finite numbers, or has too few rows.
        """
        rows = as_rows(X, what="trusted rows")
        if len(rows) < 3:
            raise FitError(f"got {len(rows)} trusted row{'s' * (len(rows) != 1)}", needed="at least 3, better 200")
        units, _ = spread_of(rows, resolution(X))
        basis = leading(rows, units, self.components, whiten=True)
        z, energies = basis.coordinates(rows)
        # Rows that leave nothing out have no spread there: a millionth of their whole length is then the unit.
        typical = np.array([energies.mean(), max(float(energies.std()), 1e-6 * rows.shape[1])])
        if self.method == "kernel":
            return FittedDensity(basis, typical, Kernel(z, len(z) ** (-1 / (z.shape[1] + 4))))
        return FittedDensity(basis, typical, _mixture(z, seed))

    def restore(self, state: Mapping[str, npt.ArrayLike]) -> FittedDensity:
        """The fit that ``state`` was taken from, with the same scores to the last bit.

        Raises:
            StoreError: where an array is missing, or has another shape or broken numbers.
        """
        shapes: dict[str, tuple[str | int, ...]] = {
            "mean": ("d",), "scale": ("d",), "directions": ("k", "d"), "deviations": ("k",), "typical": (2,)
        }  # fmt: skip
        if self.method == "kernel":
            kept = restored(
                self, state, {**shapes, "points": ("n", "k"), "bandwidth": (1,)}, ("scale", "deviations", "bandwidth")
            )
            density: Kernel | Mixture = Kernel(kept["points"], float(kept["bandwidth"][0]))
        else:
            own = {"weights": ("g",), "means": ("g", "k"), "roots": ("g", "k", "k")}
            kept = restored(self, state, {**shapes, **own}, ("scale", "deviations", "weights"))
            density = Mixture(kept["weights"], kept["means"], kept["roots"])
        basis = Leading(kept["mean"], kept["scale"], kept["directions"], kept["deviations"])
        return FittedDensity(basis, kept["typical"], density)


@dataclass(frozen=True, eq=False)
class Kernel:
    """A Gaussian kernel estimate: points (n, k), and the bandwidth."""

    points: Array
    bandwidth: float

    def __post_init__(self) -> None:
        frozen(self.points)

    def log_density(self, z: Array) -> Array:
        """Log-density (m,) at points (m, k)."""
        n, k = self.points.shape
        found = [
            logsumexp(cdist(z[start : start + _AT_ONCE], self.points, "sqeuclidean") / (-2 * self.bandwidth**2), axis=1)
            for start in range(0, len(z), _AT_ONCE)
        ]
        constant = np.log(n) + k * (np.log(2 * np.pi) / 2 + np.log(self.bandwidth))
        densities: Array = np.concatenate([*found, np.empty(0)]) - constant
        return densities

    def state(self) -> dict[str, Array]:
        """Its arrays."""
        return {"points": self.points, "bandwidth": np.array([self.bandwidth])}


@dataclass(frozen=True, eq=False)
class Mixture:
    """Gaussians: weights (g,), means (g, k), and roots (g, k, k) R of their precisions R R^T, lower triangle zero."""

    weights: Array
    means: Array
    roots: Array

    def __post_init__(self) -> None:
        frozen(self.weights, self.means, self.roots)

    def log_density(self, z: Array) -> Array:
        """Log-density (m,) at points (m, k)."""
        terms = []
        for weight, mean, root in zip(self.weights, self.means, self.roots):
            whitened = np.matmul(root.T, (z - mean)[:, :, None])[:, :, 0]
            constant = np.log(weight) + np.log(np.diagonal(root)).sum() - len(mean) * np.log(2 * np.pi) / 2
            terms.append(constant - (whitened**2).sum(axis=1) / 2)
        densities: Array = logsumexp(np.stack(terms, axis=1), axis=1)
        return densities

    def state(self) -> dict[str, Array]:
        """Its arrays."""
        return {"weights": self.weights, "means": self.means, "roots": self.roots}


@dataclass(frozen=True, eq=False)
class FittedDensity:
    """A density of trusted rows.

    Args:
        basis: the leading directions.
        typical: mean and unit of the trusted rows' squared length beside them.
        density: the density along them.
    """

    basis: Leading
    typical: Array
    density: Kernel | Mixture

    def __post_init__(self) -> None:
        frozen(self.typical)

    def score_samples(self, X: npt.ArrayLike) -> Array:
        """Normality (n,) of the rows of ``X`` (n, d): log-density, less the standardised residual energy.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        rows = as_rows(X, what="rows to score", columns=len(self.basis.mean), error=InputsError)
        z, energies = self.basis.coordinates(rows)
        if not len(rows):
            return np.empty(0)
        normality: Array = self.density.log_density(z) - (energies - self.typical[0]) / self.typical[1]
        return normality

    def state(self) -> dict[str, Array]:
        """Arrays that `Density.restore` takes."""
        basis = self.basis
        return {
            "mean": basis.mean,
            "scale": basis.scale,
            "directions": basis.directions,
            "deviations": basis.deviations,
            "typical": self.typical,
            **self.density.state(),
        }


def _mixture(z: Array, seed: int) -> Mixture:
    """The mixture of one to five Gaussians with the lowest BIC on whitened rows (n, k)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    most = min(_MOST_GAUSSIANS, len(np.unique(z, axis=0)), len(z) // 2)
    models = [
        GaussianMixture(count, reg_covar=_RIDGE, max_iter=300, random_state=seed % 2**32)
        for count in range(1, max(most, 1) + 1)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fit that is still improving slowly is as good here
        for model in models:
            model.fit(z)
    best = min(models, key=lambda model: float(model.bic(z)))
    return Mixture(np.array(best.weights_), np.array(best.means_), np.array(best.precisions_cholesky_))
