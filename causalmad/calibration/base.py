"""What a calibrator is: the interfaces, and the one check of the scores that they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from causalmad.errors import CalibrationError

Array = npt.NDArray[np.float64]


@runtime_checkable
class FittedCalibrator(Protocol):
    """A fit on the scores of held-out trusted inputs that turns scores into p-values."""

    @property
    def smallest(self) -> float:
        """The smallest p-value that any score can get."""
        ...

    def p_values(self, scores: npt.ArrayLike, /) -> Array:
        """P-values (m,) of anomaly scores (m,): smaller = more anomalous."""
        ...

    def require(self, alpha: float) -> None:
        """Nothing, where some score can be flagged at ``alpha``; a `CalibrationError` where none can."""
        ...

    def state(self) -> dict[str, Array]:
        """Arrays that the calibrator's ``restore`` takes."""
        ...


@runtime_checkable
class Calibrator(Protocol):
    """A specification of a calibrator."""

    def fit(self, scores: npt.ArrayLike, /) -> FittedCalibrator:
        """The fit on anomaly scores (n,) of trusted inputs that nothing else was fitted on; higher = more anomalous."""
        ...

    def restore(self, state: Mapping[str, Array], /) -> FittedCalibrator:
        """The fit that ``state`` was taken from."""
        ...


def as_scores(scores: npt.ArrayLike, *, what: str) -> Array:
    """``scores`` as a (n,) float64 array without NaN; infinite scores are scores.

    Raises:
        CalibrationError: where they are not that.
    """
    try:
        raw = np.asarray(scores)
    except (TypeError, ValueError) as cause:
        raise CalibrationError(f"the {what} are no array: {cause}", needed="a (n,) array of numbers") from cause
    if raw.ndim != 1 or (raw.size and raw.dtype.kind not in "fiub"):
        raise CalibrationError(
            f"the {what} have shape {raw.shape} and dtype {raw.dtype}", needed="one real number for each input, (n,)"
        )
    values = np.array(raw, dtype=np.float64)
    missing = np.flatnonzero(np.isnan(values))
    if len(missing):
        raise CalibrationError(
            f"{len(missing)} of {len(values)} {what} are NaN, the first at place {missing[0]}",
            needed="a number for each input",
            causes=["the reference gave NaN", "the scores were computed elsewhere and hold gaps"],
        )
    return values


def as_alpha(alpha: float) -> float:
    """``alpha``, where it is strictly between 0 and 1.

    Raises:
        CalibrationError: where it is not.
    """
    if not isinstance(alpha, (int, float, np.integer, np.floating)) or not 0 < alpha < 1:
        raise CalibrationError(
            f"alpha={alpha!r}",
            needed="a share of false flags strictly between 0 and 1",
            causes=["a percentage"] if isinstance(alpha, (int, float)) and 1 <= alpha < 100 else [],
            tries=["alpha=0.05", "alpha=0.01"],
        )
    return float(alpha)
