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
    contents = _contents(inputs)
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

    Inputs of equal content are on the same side, and of each content one input calibrates, drawn by the seed. Which one
    matters where copies differ in their columns: a drawn one has each value as often as it comes with that content.

    Raises:
        FitError: when fewer than 3 distinct inputs are left for fitting.
    """
    order = by_content(inputs)
    contents = _contents(inputs)[order]
    fresh = np.ones(len(order), dtype=np.bool_)
    fresh[1:] = contents[1:] != contents[:-1]
    which, total = np.cumsum(fresh) - 1, int(fresh.sum())  # the place of each row among the distinct contents
    count = max(total // 3, min(100, total // 2), 1) if share is None else max(round(share * total), 1)
    if total - count < 3:
        raise FitError(
            f"{total} distinct trusted inputs, {count} of them for calibration",
            needed="at least 3 for the signature and the reference, and for alpha = 0.05 at least 19 for calibration",
            tries=["more trusted inputs", "a smaller Detector(..., calibration_share=...)"],
        )
    # Sorted contents, then a seeded shuffle: the split does not depend on the order in which inputs came.
    held = np.zeros(total, dtype=np.bool_)
    held[np.random.default_rng([seed, 7]).permutation(total)[:count]] = True
    drawn = np.random.default_rng([seed, 17]).permutation(np.flatnonzero(held[which]))
    _, first = np.unique(which[drawn], return_index=True)
    return order[~held[which]], order[drawn[first]]


def with_copies(inputs: Inputs, rows: Rows) -> tuple[Rows, Rows]:
    """All rows with the contents of some, in the order of :func:`by_content`, and the place of each one's content.

    Args:
        inputs: all inputs.
        rows: the calibration rows of :func:`split`, which stand by content and have each once.
    """
    contents = _contents(inputs)
    order = by_content(inputs)
    kept = contents[rows]
    place = np.minimum(np.searchsorted(kept, contents[order]), len(kept) - 1)
    same = kept[place] == contents[order]
    return order[same], place[same]


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
    distinct, index = np.unique(_contents(inputs), return_inverse=True)
    if len(distinct) < count:
        raise FitError(f"{len(distinct)} distinct inputs for {count} folds", needed="at least one input for each fold")
    order = np.random.default_rng([seed, 13]).permutation(len(distinct))
    folds: Rows = (order % count)[index]
    return folds


def _contents(inputs: Inputs) -> npt.NDArray[np.bytes_]:
    """(n,) contents; bytes are compared faster than text, and a hash in hexadecimal digits is sorted alike."""
    return np.array(inputs.digests, dtype=np.bytes_)
