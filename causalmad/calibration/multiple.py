"""Many inputs at once: which p-values may be flagged together so that few of the flags are false."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from causalmad.calibration.base import as_alpha, as_scores
from causalmad.errors import CalibrationError, nearest

Array = npt.NDArray[np.float64]
Method = Literal["bh", "by", "storey", "e-bh"]

_LAMBDA = 0.5  # Storey's share of normal inputs is read off the p-values above this


def reject(p_values: npt.ArrayLike, alpha: float, method: str = "bh") -> npt.NDArray[np.bool_]:
    """(m,) which inputs to flag so that the expected share of false flags among the flags is at most ``alpha``.

    - ``bh`` (Benjamini and Hochberg 1995): for independent p-values, and for conformal ones that share their
      calibration set, which are positively dependent (Bates et al. 2023).
    - ``storey`` (Storey 2002): bh at ``alpha`` over the estimated share of normal inputs, ``(1 + #{p > 1/2}) / (m/2)``;
      flags more where many inputs are anomalous. Valid for independent p-values and for plain conformal ones.
    - ``by`` (Benjamini and Yekutieli 2001): under any dependence, at the price of a factor of about log m.
    - ``e-bh`` (Wang and Ramdas 2022): under any dependence as well; see
      :func:`causalmad.calibration.multiple.e_values`.

    Args:
        p_values: (m,) numbers in [0, 1].
        alpha: bound of the false discovery rate.
        method: one of the above.

    Raises:
        CalibrationError: where a p-value is outside [0, 1] or NaN, or ``alpha`` or ``method`` is none.

    References:
        Bates, Candes, Lei, Romano, Sesia 2023, arXiv 2104.08279. Wang, Ramdas 2022, arXiv 2009.02824.
    """
    return np.asarray(adjusted(p_values, method) <= as_alpha(alpha))


def adjusted(p_values: npt.ArrayLike, method: str = "bh") -> Array:
    """(m,) the smallest ``alpha`` at which :func:`reject` flags each input (1 where there is none below).

    Raises:
        CalibrationError: where a p-value is outside [0, 1] or NaN, or there is no such method.
    """
    if method not in get_args(Method):
        raise CalibrationError(
            f"no method {method!r} for many inputs at once",
            needed=", ".join(get_args(Method)),
            tries=[repr(name) for name in nearest(str(method), get_args(Method))],
        )
    p = as_scores(p_values, what="p-values")
    if ((p < 0) | (p > 1)).any():
        raise CalibrationError(f"p-values reach from {p.min():g} to {p.max():g}", needed="numbers in [0, 1]")
    if not len(p):
        return p
    if method == "e-bh":
        return _from_e_values(e_values(p))

    from scipy.stats import false_discovery_control

    if method == "storey":
        # Above 1 as well: cut off at 1, the estimate would no longer make up for the times when it is too small.
        normal = (1 + int((p > _LAMBDA).sum())) / (len(p) * (1 - _LAMBDA))
        found: Array = np.where(p > _LAMBDA, 1.0, np.minimum(1.0, normal * false_discovery_control(p, method="bh")))
        return found
    found = false_discovery_control(p, method=method)
    return found


def e_values(p_values: npt.ArrayLike) -> Array:
    """(m,) e-values ``(1 - p + p log p) / (p log^2 p)``: their mean is at most 1 where p is super-uniform.

    That is the mean of the calibrators ``k p^(k-1)`` over k in (0, 1); it takes no option (Vovk and Wang 2021).

    Raises:
        CalibrationError: where the p-values are no (m,) array, or some are NaN.
    """
    p = as_scores(p_values, what="p-values")
    logs = np.log(np.clip(p, 1e-300, None))
    near = logs > -1e-3  # both parts vanish at p = 1: take the series
    square = np.where(near, 1.0, p * logs**2)
    e: Array = np.where(near, 0.5 - logs / 6, (1 - p + p * logs) / np.where(square > 0, square, 1e-300))
    return e


def fewest(floors: npt.ArrayLike, alpha: float, method: str = "bh") -> int | None:
    """How many inputs must have the smallest p-value they can get before any is flagged; None where all don't suffice.

    With n calibration inputs ``bh`` flags k of m inputs only where ``k alpha / m >= 1 / (n + 1)``.

    Args:
        floors: (m,) the smallest p-value that each input can get.
        alpha: bound of the false discovery rate.
        method: as for :func:`reject`.

    Raises:
        CalibrationError: as :func:`reject` does.
    """
    lowest = np.sort(as_scores(floors, what="smallest p-values"))
    m = len(lowest)

    def flags(k: int) -> bool:
        return bool(reject(np.concatenate([lowest[:k], np.ones(m - k)]), alpha, method).any())

    if m == 0 or not flags(m):
        return None if m else 0
    low, high = 0, m  # none flags anything, all do
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if flags(middle) else (middle, high)
    return high


def _from_e_values(e: Array) -> Array:
    """The top k are flagged where ``k e_(k) / m >= 1 / alpha``."""
    order = np.argsort(-e, kind="stable")
    ranks = np.arange(1, len(e) + 1)
    least = np.minimum.accumulate((len(e) / (ranks * e[order]))[::-1])[::-1]
    found = np.empty(len(e))
    found[order] = np.minimum(least, 1.0)
    return found
