"""Numbers under digests, in a few bytes each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]

ABSENT = -1
WIDTH = 16


def as_keys(digests: bytes) -> Keys:
    """(n, 16) digests from their bytes, one after the other."""
    return np.frombuffer(digests, dtype=np.uint8).reshape(-1, WIDTH)


class Digests:
    """A table from digests of 16 bytes to whole numbers: 24 bytes an entry, where a dict takes over a hundred.

    Entries are kept in sorted runs, each at least twice as long as the next one, so that adding and finding cost a
    logarithm.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], Numbers]] = []

    def __len__(self) -> int:
        return sum(len(values) for _, _, values in self._runs)

    def add(self, keys: Keys, values: Numbers) -> None:
        """Enter ``values`` (n,) under ``keys`` (n, 16); of an entry that is there already either is found."""
        if not len(keys):
            return
        run = _sorted(*_halves(keys), np.asarray(values, dtype=np.int64))
        while self._runs and len(self._runs[-1][2]) < 2 * len(run[2]):
            run = _sorted(*(np.concatenate(both) for both in zip(self._runs.pop(), run, strict=True)))
        self._runs.append(run)

    def find(self, keys: Keys) -> Numbers:
        """(n,) number under each of ``keys`` (n, 16), ``ABSENT`` where there is none."""
        found = np.full(len(keys), ABSENT, dtype=np.int64)
        first, second = _halves(keys)
        for head, tail, values in self._runs:
            # Two digests that share a half are one in 10^19; the second of them is not found, which is always safe.
            at = np.minimum(np.searchsorted(head, first), len(head) - 1)
            same = (head[at] == first) & (tail[at] == second)
            found[same] = values[at[same]]
        return found


def _halves(keys: Keys) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    pair = np.ascontiguousarray(keys).view(np.uint64).reshape(-1, 2)
    return pair[:, 0], pair[:, 1]


def _sorted(
    head: npt.NDArray[np.uint64], tail: npt.NDArray[np.uint64], values: Numbers
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], Numbers]:
    order = np.argsort(head, kind="stable")
    return head[order], tail[order], values[order]
