"""A test martingale: evidence, gathered one p-value at a time, that inputs no longer look trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from causalmad.calibration.base import as_scores
from causalmad.errors import CalibrationError

Array = npt.NDArray[np.float64]

POWERS = (0.1, 0.25, 0.45, 0.65, 0.85)
STEPS = tuple((border, share) for border in (0.02, 0.05, 0.12) for share in (0.02, 0.08, 0.3))
BETS = len(POWERS) + len(STEPS)
MOST = 2**40  # steps: beyond, what is left to place at each is lost in rounding


@dataclass(frozen=True)
class Betting:
    """Capital of a gambler who bets that p-values are small, from some step on.

    A bet multiplies its stake by a number whose mean is at most 1 while P(p <= t) <= t for all t given the past:
    ``e p^(e-1)`` for some powers e (all inputs a little odd), or ``1 - w + w [p <= t] / t`` for some borders t and
    shares w (few inputs, very odd). All of them fall in p, so that p-values which are too large on purpose
    (calibration-conditional ones) only lose. The stakes are a mixture over bets and over the step at which the betting
    starts: the capital not yet placed before step t is ``1 / log2(t + 1)``, so that a long calm costs a logarithm, not
    the game. So the capital is a nonnegative supermartingale that starts at 1, and P(it ever reaches c) <= 1 / c
    (Ville 1939).

    Args:
        steps: how many p-values were seen.
        log_stakes: (bets,) logarithms of the stakes that are placed, each bet's sum over starting steps.
        highest: the highest log capital so far.

    References:
        Vovk, Gammerman, Shafer 2005, chapter 7. Vovk, Nouretdinov, Gammerman 2003 (mixtures of power martingales).
    """

    steps: int = 0
    log_stakes: tuple[float, ...] = (-math.inf,) * BETS
    highest: float = 0.0

    def __post_init__(self) -> None:
        broken = any(math.isnan(stake) or stake == math.inf for stake in (*self.log_stakes, self.highest))
        if not 0 <= self.steps < MOST or len(self.log_stakes) != BETS or broken:
            raise CalibrationError("this is no state of a martingale", needed=f"{BETS} logarithms of stakes")

    @property
    def log_capital(self) -> float:
        """Logarithm of the capital: what is placed, and what is not placed yet."""
        return float(np.logaddexp.reduce([*self.log_stakes, math.log(_unplaced(self.steps))]))

    def bet(self, p_value: float) -> Betting:
        """The betting after one more p-value.

        Raises:
            CalibrationError: where the p-value is not in (0, 1].
        """
        if not 0 < p_value <= 1:
            raise CalibrationError(f"p-value {p_value!r}", needed="a number above 0 and at most 1")
        fresh = math.log((_unplaced(self.steps) - _unplaced(self.steps + 1)) / BETS)
        stakes = np.logaddexp(np.array(self.log_stakes), fresh) + _log_gains(p_value)
        after = Betting(self.steps + 1, tuple(map(float, stakes)), self.highest)
        return Betting(after.steps, after.log_stakes, max(self.highest, after.log_capital))


def log_capitals(p_values: npt.ArrayLike) -> Array:
    """(t,) log capital after each of t p-values.

    Raises:
        CalibrationError: where one is not in (0, 1].
    """
    betting, found = Betting(), []
    for p_value in as_scores(p_values, what="p-values"):
        betting = betting.bet(float(p_value))
        found.append(betting.log_capital)
    return np.array(found)


def _log_gains(p: float) -> Array:
    """(bets,) logarithm of what each bet multiplies its stake by."""
    powers = [math.log(power) + (power - 1) * math.log(p) for power in POWERS]
    steps = [math.log1p(share * (1 / border - 1) if p <= border else -share) for border, share in STEPS]
    return np.array([*powers, *steps])


def _unplaced(steps: int) -> float:
    return 1 / math.log2(steps + 2)
