"""What a calibrator is: the interfaces, and the one check of the scores that they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from causalmad.errors import CalibrationError, nearest

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
    """A specification of a calibrator.

    One that takes more than scores says so by the keywords of its ``fit`` and of its fit's ``p_values``, and gets just
    those: ``covariates`` (name -> (n,) values, for the names in its attribute ``asks``), ``untrusted`` (the same of the
    unlabelled inputs, in ``fit`` alone), or ``folds`` ((n,) the fold of every score, in ``fit`` alone; its attribute
    ``folds`` is how many are wanted, and ``p_values`` then takes (m, folds) scores).
    """

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


def as_covariate(
    covariates: Mapping[str, npt.ArrayLike], name: str, count: int, *, number: bool = False
) -> npt.NDArray[Any]:
    """One covariate as a (count,) array, of finite float64 numbers where ``number``.

    Raises:
        CalibrationError: where it is missing, of another length, or has gaps.
    """
    if name not in covariates:
        raise CalibrationError(
            f"no covariate {name!r}",
            needed=f"one value of {name!r} for each score",
            tries=[repr(near) for near in nearest(name, covariates)],
        )
    values = np.asarray(covariates[name])
    if values.shape != (count,):
        raise CalibrationError(f"covariate {name!r} has shape {values.shape}", needed=f"({count},), one for each score")
    if values.dtype.kind == "f" or number:
        try:
            numbers = values.astype(np.float64)
        except (TypeError, ValueError) as cause:
            raise CalibrationError(
                f"covariate {name!r} is of {values.dtype}, no number", needed="numbers", tries=["bins=None"]
            ) from cause
        if not np.isfinite(numbers).all():
            raise CalibrationError(f"covariate {name!r} holds NaN or infinity", needed="a finite number for each input")
        return numbers if number else values
    return values


def as_label(value: Any) -> str:
    """A category's name: whole numbers look alike, however they came."""
    return str(int(value)) if isinstance(value, (float, np.floating)) and float(value).is_integer() else str(value)


def to_text(text: str) -> npt.NDArray[np.uint8]:
    """Text as an array of bytes, for a file that holds nothing but arrays."""
    return np.frombuffer(text.encode(), dtype=np.uint8).copy()


def from_text(data: npt.NDArray[Any]) -> str:
    """The text that :func:`to_text` wrote."""
    return np.asarray(data, dtype=np.uint8).tobytes().decode()
