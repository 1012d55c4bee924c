"""Splits of trusted inputs: by content and seed, whatever order they came in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from causalmad.errors import FitError, SpecError
from causalmad.inputs import Inputs


def split(inputs: Inputs, share: float | None, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows for fitting and rows for calibration; inputs of equal content are on the same side.

    Raises:
        FitError: when fewer than 3 distinct inputs are left for fitting.
    """
    contents = np.array(inputs.digests)
    distinct = np.unique(contents)
    total = len(distinct)
    count = max(total // 3, min(100, total // 2), 1) if share is None else max(round(share * total), 1)
    if total - count < 3:
        raise FitError(
            f"{total} distinct trusted inputs, {count} of them for calibration",
            needed="at least 3 for the signature and the reference, and for alpha = 0.05 at least 19 for calibration",
            tries=["more trusted inputs", "a smaller Detector(..., calibration_share=...)"],
        )
    # Sorted contents, then a seeded shuffle: the split does not depend on the order in which inputs came.
    held = np.random.default_rng([seed, 7]).permutation(distinct)[:count]
    inside = np.isin(contents, held)
    return np.flatnonzero(~inside), np.flatnonzero(inside)


def as_seed(seed: object) -> int:
    """A seed as Python's whole number.

    Raises:
        SpecError: when it is none, or negative.
    """
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise SpecError(f"seed={seed!r}", needed="a whole number, 0 or larger", tries=["seed=0"])
    return int(seed)


def folds_of(inputs: Inputs, count: int, seed: int) -> npt.NDArray[np.int64]:
    """(n,) fold of every input; inputs of equal content share a fold, and the order of the inputs plays no part.

    Raises:
        FitError: when there are fewer distinct inputs than folds.
    """
    contents = np.array(inputs.digests)
    distinct, index = np.unique(contents, return_inverse=True)
    if len(distinct) < count:
        raise FitError(f"{len(distinct)} distinct inputs for {count} folds", needed="at least one input for each fold")
    order = np.random.default_rng([seed, 13]).permutation(len(distinct))
    folds: npt.NDArray[np.int64] = (order % count)[index]
    return folds
