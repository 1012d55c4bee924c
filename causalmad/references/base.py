"""What a reference is: the interfaces, and the one check of the tables that they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from causalmad.errors import CausalmadError, FitError

Array = npt.NDArray[np.float64]


@runtime_checkable
class FittedReference(Protocol):
    """A fit on trusted rows that says how normal a row is."""

    def score_samples(self, X: npt.ArrayLike, /) -> Array:
        """Normality (n,) of the rows of ``X`` (n, d): higher = more normal, scikit-learn's sign."""
        ...


@runtime_checkable
class ExplainedReference(FittedReference, Protocol):
    """A fitted reference whose score is a sum over columns."""

    def contributions(self, X: npt.ArrayLike, /) -> Array:
        """Contributions (n, d) that sum over columns to the anomaly score, which is ``-score_samples(X)``."""
        ...


@runtime_checkable
class Reference(Protocol):
    """A specification of a reference; scikit-learn's outlier estimators are such specifications as they are."""

    def fit(self, X: npt.ArrayLike, /) -> FittedReference:
        """The fit on trusted rows ``X`` (n, d)."""
        ...


def anomaly_scores(score_samples: Callable[[npt.ArrayLike], Array], X: npt.ArrayLike) -> Array:
    """Anomaly scores: the one place where scikit-learn's sign (higher = more normal) is turned round."""
    return -np.asarray(score_samples(X), dtype=np.float64)


def as_rows(
    X: npt.ArrayLike, *, what: str, columns: int | None = None, error: type[CausalmadError] = FitError
) -> Array:
    """``X`` as a (n, d) float64 array of finite numbers.

    Args:
        X: rows; anything that numpy turns into a table of real numbers.
        what: how the message names the rows ("trusted rows").
        columns: the number of columns that is needed, where there is one.
        error: the error to raise.

    Raises:
        CausalmadError: of the class ``error``, where ``X`` is no table, has other columns, or holds NaN or infinity.
    """
    try:
        raw = np.asarray(X)
    except (TypeError, ValueError) as cause:
        raise error(f"the {what} are no table: {cause}", needed="a (rows, columns) array of numbers") from cause
    if raw.ndim != 2 or raw.dtype.kind not in "fiub":
        raise error(
            f"the {what} have shape {raw.shape} and dtype {raw.dtype}",
            needed="a (rows, columns) array of real numbers",
            causes=["one row without its batch axis"] if raw.ndim == 1 else [],
            tries=["X[None, :] for one row", "X[:, None] for one column"] if raw.ndim == 1 else [],
        )
    if raw.shape[1] == 0 or (columns is not None and raw.shape[1] != columns):
        raise error(f"the {what} have {raw.shape[1]} columns", needed=f"{columns or 'at least 1'} columns")
    rows = np.ascontiguousarray(raw, dtype=np.float64)
    broken = np.logical_not(np.isfinite(rows))
    if broken.any():
        raise error(
            f"the {what} hold NaN or infinity in {_listed(np.any(broken, axis=0), 'column')} "
            f"({_listed(np.any(broken, axis=1), 'row')})",
            needed="finite numbers",
            causes=["the model gave NaN or overflowed on these inputs", "half precision in a layer"],
            tries=["drop or mend these inputs", "model.float()"],
        )
    return rows


def resolution(X: npt.ArrayLike) -> float:
    """Relative rounding of the numbers of ``X`` as they came: float32 signatures are exact to about 1e-7."""
    dtype = np.asarray(X).dtype
    return float(np.finfo(dtype).eps if dtype.kind == "f" and dtype.itemsize < 8 else np.finfo(np.float64).eps)


def _listed(mask: npt.ArrayLike, noun: str, count: int = 8) -> str:
    """Where a mask holds, in words: "columns 3, 5 and 9 more"."""
    places = np.flatnonzero(mask)
    rest = f" and {len(places) - count} more" if len(places) > count else ""
    return f"{noun}{'s' if len(places) > 1 else ''} {', '.join(str(place) for place in places[:count])}{rest}"
