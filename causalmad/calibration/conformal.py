"""Split-conformal p-values: the rank of a score among those of held-out trusted inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from causalmad.calibration.base import as_alpha, as_scores
from causalmad.errors import CalibrationError, StoreError

if TYPE_CHECKING:
    from causalmad.calibration.calibration_conditional import FittedConditional

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Conformal:
    """Split-conformal p-values, valid on average over calibration sets whatever the scores are.

    ``p = (1 + #{calibration scores >= score}) / (n + 1)``. If a normal input is exchangeable with the n calibration
    inputs, P(p <= alpha) <= alpha for every alpha. Ties count against flagging, so this holds for tied scores too.

    References:
        Vovk, Gammerman, Shafer 2005, "Algorithmic learning in a random world".
        Bates, Candes, Lei, Romano, Sesia 2023, arXiv 2104.08279.
    """

    def fit(self, scores: npt.ArrayLike) -> FittedConformal:
        """The fit on anomaly scores (n,) of trusted inputs that nothing else was fitted on; higher = more anomalous.

        Raises:
            CalibrationError: where there are no scores, or some are NaN.
        """
        values = as_scores(scores, what="calibration scores")
        if not len(values):
            raise CalibrationError(
                "got no calibration scores",
                needed="held-out trusted inputs: 19 for alpha=0.05, 99 for alpha=0.01",
            )
        return FittedConformal(np.sort(values))

    def restore(self, state: Mapping[str, Array]) -> FittedConformal:
        """The fit that ``state`` was taken from.

        Raises:
            StoreError: where the scores are missing, broken or out of order.
        """
        if set(state) != {"scores"}:
            raise StoreError(f"the state of Conformal holds {sorted(state)}", needed="exactly ['scores']")
        scores = np.array(state["scores"], dtype=np.float64)
        if scores.ndim != 1 or not len(scores) or np.isnan(scores).any() or (scores[1:] < scores[:-1]).any():
            raise StoreError(f"scores of shape {scores.shape} are broken", needed="(n,) rising numbers, n above 0")
        return FittedConformal(scores)


@dataclass(frozen=True, eq=False)
class FittedConformal:
    """P-values against the scores of held-out trusted inputs.

    Args:
        scores: (n,) calibration scores, rising; higher = more anomalous.
    """

    scores: Array

    def __post_init__(self) -> None:
        self.scores.setflags(write=False)

    @property
    def smallest(self) -> float:
        """The smallest p-value that any score can get: 1 / (n + 1)."""
        return 1 / (len(self.scores) + 1)

    def p_values(self, scores: npt.ArrayLike) -> Array:
        """P-values (m,) of anomaly scores (m,), in [1 / (n + 1), 1]: smaller = more anomalous.

        Raises:
            CalibrationError: where the scores are no (m,) array of numbers, or some are NaN.
        """
        values = as_scores(scores, what="scores")
        n = len(self.scores)
        as_high = n - np.searchsorted(self.scores, values, side="left")
        p: Array = (1 + as_high) / (n + 1)
        return p

    def require(self, alpha: float) -> None:
        """Nothing, where some score can be flagged at ``alpha``.

        Raises:
            CalibrationError: where the smallest p-value is above ``alpha``, with the number of inputs it takes.
        """
        if self.smallest <= as_alpha(alpha):
            return
        n = len(self.scores)
        inputs = f"{n} calibration input{'s' * (n != 1)}"
        raise CalibrationError(
            f"alpha={alpha:g} can never flag anything: with {inputs} the smallest p-value is "
            f"1/{n + 1} = {self.smallest:.2g}",
            tries=[f"alpha >= {rounded_up(self.smallest)}", f"at least {inputs_needed(alpha)} calibration inputs"],
        )

    def conditional(self, delta: float) -> FittedConditional:
        """P-values that are valid given the calibration scores, with probability 1 - delta over these."""
        from causalmad.calibration.calibration_conditional import FittedConditional, bounds

        return FittedConditional(self, bounds("monte-carlo", len(self.scores), delta))

    def state(self) -> dict[str, Array]:
        """Arrays that `Conformal.restore` takes."""
        return {"scores": self.scores}


def inputs_needed(alpha: float) -> int:
    """The fewest calibration inputs with which a p-value can reach ``alpha``.

    Raises:
        CalibrationError: where ``alpha`` is not strictly between 0 and 1.
    """
    n = max(1, math.ceil(1 / as_alpha(alpha)) - 2)
    while 1 / (n + 1) > alpha:  # the quotients that `p_values` gives decide, not 1 / alpha with its rounding
        n += 1
    return n


def rounded_up(value: float) -> str:
    """A share to two digits, never below it."""
    exact = Fraction(value)
    power = 10 ** (2 - math.floor(math.log10(exact)) - 1)
    return f"{float(Fraction(math.ceil(exact * power), power)):.2g}"
