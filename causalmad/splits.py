"""Splits of trusted inputs: by content and seed, whatever order they came in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from causalmad.errors import FitError, SpecError
from causalmad.inputs import Inputs

Rows = npt.NDArray[np.int64]


def by_content(inputs: Inputs) -> Rows:
    """(n,) rows in an order that does not depend on the one in which they came: by content, copies by columns and id.

    Whatever is fitted on the inputs in this order has the same bits, however they were shuffled. Contents are hashes,
    so that nothing about the inputs shows in it.
    """
    contents = np.array(inputs.digests)
    order = np.argsort(contents, kind="stable")
    tied = np.flatnonzero(contents[order[1:]] == contents[order[:-1]])
    if not len(tied):
        return order

    def key(row: int) -> tuple[str, ...]:
        columns = (repr(inputs.columns[name][row]) for name in sorted(inputs.columns))
        return (inputs.digests[row], *columns, inputs.ids[row])

    places = np.union1d(tied, tied + 1)
    order[places] = sorted(order[places].tolist(), key=key)
    return order


def split(inputs: Inputs, share: float | None, seed: int) -> tuple[Rows, Rows]:
    """Rows for fitting and rows for calibration, in the order of :func:`by_content`.

    Inputs of equal content are on the same side.

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
    order = by_content(inputs)
    inside = np.isin(contents[order], held)
    return order[~inside], order[inside]


def as_seed(seed: object) -> int:
    """A seed as Python's whole number.

    Raises:
        SpecError: when it is none, or negative.
    """
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise SpecError(f"seed={seed!r}", needed="a whole number, 0 or larger", tries=["seed=0"])
    return int(seed)


def folds_of(inputs: Inputs, count: int, seed: int) -> Rows:
    """(n,) fold of every input; inputs of equal content share a fold, and the order of the inputs plays no part.

    Raises:
        FitError: when there are fewer distinct inputs than folds.
    """
    contents = np.array(inputs.digests)
    distinct, index = np.unique(contents, return_inverse=True)
    if len(distinct) < count:
        raise FitError(f"{len(distinct)} distinct inputs for {count} folds", needed="at least one input for each fold")
    order = np.random.default_rng([seed, 13]).permutation(len(distinct))
    folds: Rows = (order % count)[index]
    return folds
