"""P-values that hold for the calibration set at hand, not only on average over calibration sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from causalmad.calibration.base import as_alpha
from causalmad.calibration.conformal import Conformal, FittedConformal
from causalmad.config import require_options
from causalmad.errors import CalibrationError, SpecError, StoreError, nearest

Array = npt.NDArray[np.float64]
Method = Literal["monte-carlo", "simes", "asymptotic", "dkwm"]

_SIMULATIONS = 10_000
_NUMBERS = 200_000_000  # with more than 20,000 scores, fewer sets are simulated: at most so many numbers in all
_FEWEST = 16  # the iterated logarithms of the asymptotic bound need more than e^e


@dataclass(frozen=True)
class CalibrationConditional:
    """Conformal p-values adjusted to be valid given the calibration scores, with probability 1 - delta over these.

    Plain conformal p-values flag a share alpha of normal inputs on average over calibration sets; the share for the one
    set that was drawn scatters about it by sqrt(alpha / n). Here, except with probability ``delta`` over calibration
    sets, P(p <= t) <= t for all t at once. The k-th smallest p-value is replaced by a bound b_k which the k-th smallest
    of n uniform numbers exceeds for any k with probability at most ``delta``:

    - ``simes``: ``b_k = 1 - delta^(1/h) ((i ... (i-h+1)) / (n ... (n-h+1)))^(1/h)``, i = n + 1 - k, h = n // 2; tight
      for small p-values.
    - ``asymptotic``: ``k/n + c_n(delta) sqrt(k (n-k)) / (n sqrt(n))`` by the law of the iterated logarithm; valid for
      large n only.
    - ``dkwm``: ``k/n + sqrt(log(2/delta) / (2 n))``; far too wide for small p-values.
    - ``monte-carlo``: the smaller of simes and asymptotic, at a common level for which 10,000 simulated sets cross the
      bound with probability at most ``delta``; below 16 scores, or for a delta below 1e-4, simes alone.

    Args:
        method: one of the above.
        delta: probability over calibration sets that the p-values are not valid.

    References:
        Bates, Candes, Lei, Romano, Sesia 2023, arXiv 2104.08279, section 3. Sarkar 2008 (generalised Simes constants).
    """

    method: Method = "monte-carlo"
    delta: float = 0.1

    def __post_init__(self) -> None:
        require_options(self)
        if self.method not in get_args(Method):
            raise SpecError(
                f"method={self.method!r}",
                needed=", ".join(get_args(Method)),
                tries=[f"method={name!r}" for name in nearest(str(self.method), get_args(Method))],
            )
        if not 0 < self.delta < 1:
            raise SpecError(f"delta={self.delta!r}", needed="a probability between 0 and 1", tries=["delta=0.1"])

    def fit(self, scores: npt.ArrayLike) -> FittedConditional:
        """The fit on anomaly scores (n,) of trusted inputs that nothing else was fitted on; higher = more anomalous.

        Raises:
            CalibrationError: where there are no scores, or some are NaN.
        """
        plain = Conformal().fit(scores)
        return FittedConditional(plain, bounds(self.method, len(plain.scores), self.delta))

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> FittedConditional:
        """The fit that ``state`` was taken from.

        Raises:
            StoreError: where an array is missing or broken.
        """
        plain = Conformal().restore({key: value for key, value in state.items() if key != "bounds"})
        rising = np.array(state.get("bounds", ()), dtype=np.float64)
        n = len(plain.scores)
        if rising.shape != (n + 1,) or not ((rising > 0) & (rising <= 1)).all() or (np.diff(rising) < 0).any():
            raise StoreError(
                f"bounds of shape {rising.shape} are broken", needed=f"({n + 1},) rising numbers in (0, 1]"
            )
        return FittedConditional(plain, rising)


@dataclass(frozen=True, eq=False)
class FittedConditional:
    """Conformal p-values replaced by their bounds.

    Args:
        plain: the conformal p-values.
        bounds: (n + 1,) rising, what each of the p-values k / (n + 1), k = 1..n + 1, becomes.
    """

    plain: FittedConformal
    bounds: Array

    def __post_init__(self) -> None:
        self.bounds.setflags(write=False)

    @property
    def scores(self) -> Array:
        """(n,) calibration scores, rising."""
        return self.plain.scores

    @property
    def smallest(self) -> float:
        """The smallest p-value that any score can get."""
        return float(self.bounds[0])

    def p_values(self, scores: npt.ArrayLike) -> Array:
        """P-values (m,) of anomaly scores (m,): smaller = more anomalous.

        Raises:
            CalibrationError: where the scores are no (m,) array of numbers, or some are NaN.
        """
        ranks = np.rint(self.plain.p_values(scores) * (len(self.scores) + 1)).astype(np.int64)
        found: Array = self.bounds[ranks - 1]
        return found

    def require(self, alpha: float) -> None:
        """Nothing, where some score can be flagged at ``alpha``.

        Raises:
            CalibrationError: where the smallest p-value is above ``alpha``.
        """
        if self.smallest <= as_alpha(alpha):
            return
        n = len(self.scores)
        raise CalibrationError(
            f"alpha={alpha:g} can never flag anything: with {n} calibration inputs the smallest p-value that is valid "
            f"given these inputs is {self.smallest:.2g}",
            tries=[
                f"alpha >= {math.ceil(self.smallest * 1000) / 1000:g}",
                f"about {math.ceil(n * self.smallest / alpha)} calibration inputs",
                "calibrator=Conformal(), valid on average over calibration sets",
            ],
        )

    def conditional(self, delta: float) -> FittedConditional:
        """The same scores with another probability that the p-values are not valid."""
        return self.plain.conditional(delta)

    def state(self) -> dict[str, Array]:
        """Arrays that `CalibrationConditional.restore` takes."""
        return {**self.plain.state(), "bounds": self.bounds}


@lru_cache(maxsize=64)
def bounds(method: str, n: int, delta: float) -> Array:
    """(n + 1,) rising bounds b_1..b_n and 1; the k-th smallest of n uniform numbers is at most b_k for all k at once.

    No bound is below k / (n + 1), so that the p-values are never smaller than plain conformal ones.

    Args:
        method: see :class:`CalibrationConditional`.
        n: calibration scores.
        delta: probability that the bound is crossed.

    Raises:
        CalibrationError: where n is too small for the asymptotic bound.
    """
    if method == "asymptotic" and n < _FEWEST:
        raise CalibrationError(f"{n} calibration inputs for the asymptotic bound", needed=f"at least {_FEWEST}")
    ranks = np.arange(1, n + 1)
    if method == "dkwm":
        raw = ranks / n + math.sqrt(math.log(2 / delta) / (2 * n))
    elif method == "asymptotic":
        raw = _asymptotic(n, delta)
    elif method == "simes" or delta * (_simulations(n) + 1) < 1:  # too rare to simulate
        raw = _simes(n, delta)
    else:
        level = _crossing_level(n, delta)
        raw = _simes(n, level) if n < _FEWEST else np.minimum(_simes(n, level), _asymptotic(n, level))
    raised = np.maximum.accumulate(np.maximum(raw, ranks / (n + 1)))
    found: Array = np.append(np.clip(raised, 0.0, 1.0), 1.0)
    found.setflags(write=False)
    return found


def _simes(n: int, delta: float) -> Array:
    return 1 - np.exp(math.log(delta) / max(1, n // 2) + _log_ratios(n))


def _log_ratios(n: int) -> Array:
    """(n,) log of ``((i ... (i-h+1)) / (n ... (n-h+1)))^(1/h)`` at i = n, n-1, ..., 1; minus infinity for i < h."""
    h = max(1, n // 2)
    sums = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    i = np.arange(n, 0, -1)
    means = np.where(i >= h, (sums[i] - sums[np.maximum(i - h, 0)]) / h, -np.inf)
    return np.asarray(means - means[0], dtype=np.float64)


def _asymptotic(n: int, delta: float) -> Array:
    k = np.arange(1, n + 1)
    double = math.log(math.log(n))
    # log1p keeps very small probabilities apart from zero.
    top = -math.log(-math.log1p(-delta)) + 2 * double + 0.5 * math.log(double) - 0.5 * math.log(math.pi)
    return np.asarray(k / n + top / math.sqrt(2 * double) * np.sqrt(k * (n - k)) / (n * math.sqrt(n)))


def _simulations(n: int) -> int:
    return max(1000, min(_SIMULATIONS, _NUMBERS // n))


def _crossing_level(n: int, delta: float) -> float:
    """The level at which the simulated sets, and a new one among them, cross the bound with probability ``delta``.

    For every simulated set the level at which it touches the bound is known in closed form. Exchangeable with them,
    a new set's level is below the r-th smallest of B with probability at most r / (B + 1).
    """
    count = _simulations(n)
    rank = math.floor(delta * (count + 1))
    draw = np.random.default_rng([n, 41])
    h, ratios = max(1, n // 2), _log_ratios(n)
    double = math.log(math.log(n)) if n >= _FEWEST else 0.0
    k = np.arange(1, n)
    spread = np.sqrt(k * (n - k)) / (n * math.sqrt(n))
    levels = []
    size = max(1, 2_000_000 // (n + 1))
    for start in range(0, count, size):
        gaps = draw.standard_exponential((min(size, count - start), n + 1))
        sums = np.cumsum(gaps, axis=1)
        uniform = np.minimum(sums[:, :-1] / sums[:, -1:], 1 - 1e-16)
        known = ratios > -np.inf
        level = (h * (np.log1p(-uniform[:, known]) - ratios[known])).min(axis=1)
        level = np.exp(np.minimum(level, 0.0))
        if n >= _FEWEST:
            height = ((uniform[:, :-1] - k / n) / spread).max(axis=1) * math.sqrt(2 * double)
            exponent = height - 2 * double - 0.5 * math.log(double) + 0.5 * math.log(math.pi)
            level = np.minimum(level, -np.expm1(-np.exp(-exponent)))
        levels.append(level)
    return float(np.clip(np.sort(np.concatenate(levels))[rank - 1], 1e-300, 1 - 1e-12))
