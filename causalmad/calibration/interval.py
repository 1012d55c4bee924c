"""How far the share of false flags may lie from alpha when everything is right."""

from __future__ import annotations

import math

from causalmad.calibration.base import as_alpha
from causalmad.calibration.conformal import inputs_needed
from causalmad.errors import CalibrationError


def beta_binomial_interval(n_calibration: int, n_test: int, alpha: float, level: float = 0.99) -> tuple[float, float]:
    """Interval (lo, hi) of the share of normal test inputs that a split-conformal test at ``alpha`` flags.

    Given the calibration scores, without ties, a normal input is flagged with a probability that is Beta(k, n + 1 - k)
    over calibration sets, k the greatest whole number with k / (n + 1) <= alpha; so the number flagged of m is
    beta-binomial. The interval leaves at most ``(1 - level) / 2`` on either side. With ties fewer are flagged.

    Args:
        n_calibration: n, calibration inputs.
        n_test: m, normal test inputs, exchangeable with them.
        alpha: the level of the test.
        level: share of (calibration set, test set) pairs that the interval holds.

    Raises:
        CalibrationError: where a number is out of range, or ``alpha`` is out of reach of ``n_calibration`` inputs.

    References:
        Vovk 2012, arXiv 1209.2673. Bates, Candes, Lei, Romano, Sesia 2023, arXiv 2104.08279.
    """
    if n_test < 1:
        raise CalibrationError(f"n_test={n_test}", needed="at least 1 test input")
    if not 0 < level < 1:
        raise CalibrationError(f"level={level}", needed="a share strictly between 0 and 1", tries=["level=0.99"])
    least = inputs_needed(as_alpha(alpha))
    if n_calibration < least:
        raise CalibrationError(
            f"alpha={alpha:g} can never flag anything with {n_calibration} calibration inputs",
            tries=[f"at least {least} calibration inputs"],
        )
    from scipy.stats import betabinom

    k = math.floor(alpha * (n_calibration + 1))
    if (k + 1) / (n_calibration + 1) <= alpha:  # 0.29 * 100 is just under 29
        k += 1
    flagged = betabinom(n_test, k, n_calibration + 1 - k)
    tail = (1 - level) / 2
    return float(flagged.ppf(tail)) / n_test, float(flagged.ppf(1 - tail)) / n_test
