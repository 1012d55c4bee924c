"""Cross-conformal p-values: for small trusted sets, where every input serves both reference and calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from causalmad.calibration.base import as_alpha, as_scores
from causalmad.calibration.conformal import inputs_needed
from causalmad.config import require_options
from causalmad.errors import CalibrationError, SpecError, StoreError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CrossConformal:
    """Cross-conformal p-values for small trusted sets, valid up to a factor of 2.

    The signature is fitted on a third of the trusted inputs; the others are divided into folds, and for every fold the
    reference is fitted on all inputs but this fold. With s_k the score by the reference without fold k,
    ``p(x) = (1 + sum over k of #{i in fold k: s_k(i) >= s_k(x)}) / (n + 1)``. All n inputs serve both reference and
    calibration, at the price of a weaker guarantee: P(p <= alpha) is at most
    ``2 alpha + min(2 (1 - 1/K) / (n/K + 1), (1 - K/n) / (K + 1))``, and in practice close to alpha.

    Args:
        folds: how many, K. More cost more fits of the reference, which are cheap beside the signatures.

    References:
        Vovk 2015, arXiv 1208.0806. Barber, Candes, Ramdas, Tibshirani 2021, arXiv 1905.02928, theorem 4.
    """

    folds: int = 5

    def __post_init__(self) -> None:
        require_options(self)
        if isinstance(self.folds, bool) or not isinstance(self.folds, int) or self.folds < 2:
            raise SpecError(f"folds={self.folds!r}", needed="a whole number, at least 2", tries=["folds=5"])

    def fit(self, scores: npt.ArrayLike, *, folds: npt.ArrayLike | None = None) -> FittedCross:
        """The fit on anomaly scores (n,), each by the reference that has not seen its fold; higher = more anomalous.

        Args:
            scores: (n,) scores.
            folds: (n,) fold of each, 0, 1, ...; without it all are of one fold, which is split conformal.

        Raises:
            CalibrationError: where there are no scores, some are NaN, or a fold has none.
        """
        values = as_scores(scores, what="calibration scores")
        index = np.zeros(len(values), dtype=np.int64) if folds is None else np.asarray(folds)
        if not len(values):
            raise CalibrationError("got no calibration scores", needed="19 trusted inputs in folds for alpha=0.05")
        if index.shape != values.shape or index.dtype.kind not in "iu":
            raise CalibrationError(f"folds of shape {index.shape}", needed=f"({len(values)},) whole numbers")
        parts = [np.sort(values[index == fold]) for fold in range(int(index.max()) + 1)]
        if min(map(len, parts)) == 0 or index.min() < 0:
            raise CalibrationError("a fold has no scores", needed="folds 0, 1, ... without a gap")
        return FittedCross(tuple(parts))

    def restore(self, state: Mapping[str, Array]) -> FittedCross:
        """The fit that ``state`` was taken from.

        Raises:
            StoreError: where a fold is missing, or its scores are broken or out of order.
        """
        parts = [np.array(state.get(str(fold), ()), dtype=np.float64) for fold in range(len(state))]
        for part in parts:
            if part.ndim != 1 or not len(part) or np.isnan(part).any() or (np.diff(part) < 0).any():
                raise StoreError(f"scores of shape {part.shape} are broken", needed="(n,) rising numbers in each fold")
        if not parts:
            raise StoreError("the state of CrossConformal holds nothing", needed="the scores of every fold")
        return FittedCross(tuple(parts))


@dataclass(frozen=True, eq=False)
class FittedCross:
    """P-values against the scores of every fold.

    Args:
        folds: for every fold its scores, rising.
    """

    folds: tuple[Array, ...]

    def __post_init__(self) -> None:
        for scores in self.folds:
            scores.setflags(write=False)

    @property
    def count(self) -> int:
        """Number of calibration scores in all folds."""
        return sum(map(len, self.folds))

    @property
    def smallest(self) -> float:
        """The smallest p-value that any score can get: 1 / (n + 1)."""
        return 1 / (self.count + 1)

    def p_values(self, scores: npt.ArrayLike) -> Array:
        """P-values (m,): smaller = more anomalous.

        Args:
            scores: (m, folds) anomaly scores by every fold's reference; with a single fold also (m,).

        Raises:
            CalibrationError: where the scores are no such array of numbers, or some are NaN.
        """
        shape = np.shape(scores) if isinstance(scores, np.ndarray) else ()
        if len(self.folds) == 1 and shape[1:] != (1,):
            columns = [as_scores(scores, what="scores")]
        elif len(shape) == 2 and shape[1] == len(self.folds):
            columns = [as_scores(column, what="scores") for column in np.asarray(scores).T]
        else:
            raise CalibrationError(
                f"the scores have shape {shape}", needed=f"(inputs, {len(self.folds)}): one score for each fold"
            )
        higher = sum(len(own) - np.searchsorted(own, new, side="left") for own, new in zip(self.folds, columns))
        p: Array = (1 + np.asarray(higher)) / (self.count + 1)
        return p

    def require(self, alpha: float) -> None:
        """Nothing, where some score can be flagged at ``alpha``.

        Raises:
            CalibrationError: where the smallest p-value is above ``alpha``.
        """
        if self.smallest <= as_alpha(alpha):
            return
        raise CalibrationError(
            f"alpha={alpha:g} can never flag anything: with {self.count} inputs in folds the smallest p-value is "
            f"1/{self.count + 1} = {self.smallest:.2g}",
            tries=[f"at least {inputs_needed(alpha)} inputs in folds"],
        )

    def state(self) -> dict[str, Array]:
        """Arrays that `CrossConformal.restore` takes."""
        return {str(fold): scores for fold, scores in enumerate(self.folds)}
