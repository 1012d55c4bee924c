"""Scores that are quadratic in the columns: one fitted form for all of them, with exact contributions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from causalmad.errors import InputsError
from causalmad.references.base import as_rows
from causalmad.references.covariance import Spread
from causalmad.references.state import Shapes, frozen, restored

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FittedQuadratic:
    """The anomaly score ``r^T M r + b^T r + c``, with r a row less ``mean``, in units of ``scale``.

    Args:
        mean: (d,) the point that rows are compared with.
        scale: (d,) unit of each column.
        matrix: (d, d) M, symmetric.
        linear: (d,) b.
        constant: c.
    """

    mean: Array
    scale: Array
    matrix: Array
    linear: Array
    constant: float = 0.0

    def __post_init__(self) -> None:
        frozen(self.mean, self.scale, self.matrix, self.linear)

    def score_samples(self, X: npt.ArrayLike) -> Array:
        """Normality (n,) of the rows of ``X`` (n, d): higher = more normal.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        scores: Array = -self.contributions(X).sum(axis=1)
        return scores

    def contributions(self, X: npt.ArrayLike) -> Array:
        """Contributions (n, d) ``r_j (M r)_j + b_j r_j + c/d``, which sum over columns to the anomaly score.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        rows = as_rows(X, what="rows to score", columns=len(self.mean), error=InputsError)
        form = Spread(self.mean, self.scale, self.matrix, 0.0)
        parts: Array = form.shares(rows) + self.linear * form.standardised(rows) + self.constant / len(self.mean)
        return parts

    def state(self) -> dict[str, Array]:
        """Arrays that the specification's ``restore`` takes."""
        return {
            "mean": self.mean,
            "scale": self.scale,
            "matrix": self.matrix,
            "linear": self.linear,
            "constant": np.array([self.constant]),
        }


def quadratic_restored(spec: object, state: Mapping[str, npt.ArrayLike]) -> FittedQuadratic:
    """The fit that ``state`` was taken from, with the same scores to the last bit.

    Raises:
        StoreError: where an array is missing, or has another shape or broken numbers.
    """
    shapes: Shapes = {"mean": ("d",), "scale": ("d",), "matrix": ("d", "d"), "linear": ("d",), "constant": (1,)}
    kept = restored(spec, state, shapes, positive=("scale",))
    return FittedQuadratic(kept["mean"], kept["scale"], kept["matrix"], kept["linear"], float(kept["constant"][0]))
