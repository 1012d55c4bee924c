"""Numbers under digests, in a few bytes each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]

ABSENT = -1
WIDTH = 16

_LARGEST = 2**17  # entries of a run: two such are never merged, so that no moment takes much more than the table


def as_keys(digests: bytes) -> Keys:
    """(n, 16) digests from their bytes, one after the other."""
    return np.frombuffer(digests, dtype=np.uint8).reshape(-1, WIDTH)


class Digests:
    """A table from digests of 16 bytes to whole numbers: 24 bytes an entry, where a dict takes over a hundred.

    Entries are kept in sorted runs, each at least twice as long as the next one up to a largest size, so that adding
    and finding cost little and nothing large is ever copied.
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
        while self._runs and len(self._runs[-1][2]) < min(2 * len(run[2]), _LARGEST):
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


class Counts:
    """How often each digest has come so far, in 32 bytes for each that is new."""

    def __init__(self) -> None:
        self._slots = Digests()
        self._counts = np.zeros(1024, dtype=np.uint32)

    def add(self, keys: Keys) -> Numbers:
        """(n,) how often each of ``keys`` (n, 16) had come before, in this call or an earlier one."""
        slots = self._slots.find(keys)
        new = np.flatnonzero(slots == ABSENT)
        if len(new):
            used = len(self._slots)
            _, first, which = np.unique(_flat(keys[new]), return_index=True, return_inverse=True)
            self._slots.add(keys[new[first]], np.arange(used, used + len(first)))
            slots[new] = used + which
            if used + len(first) > len(self._counts):
                self._counts = np.concatenate([self._counts, np.zeros(used // 4 + len(first), dtype=np.uint32)])
        order = np.argsort(slots, kind="stable")
        starts = np.flatnonzero(np.diff(slots[order], prepend=-1))
        before = np.empty(len(keys), dtype=np.int64)
        before[order] = np.arange(len(keys)) - np.repeat(starts, np.diff(np.append(starts, len(keys))))
        before += self._counts[slots]
        np.add.at(self._counts, slots, 1)
        return before


def first_rows(keys: Keys) -> Numbers:
    """(m,) the rows of ``keys`` (n, 16) that no earlier row equals, in order."""
    rows: Numbers = np.sort(np.unique(_flat(keys), return_index=True)[1])
    return rows


def _flat(keys: Keys) -> npt.NDArray[np.bytes_]:
    # numpy drops zeros at the end of such texts, which all are of one length: what is equal stays so.
    return np.ascontiguousarray(keys).view(f"S{WIDTH}").reshape(-1)


def _halves(keys: Keys) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    pair = np.ascontiguousarray(keys).view(np.uint64).reshape(-1, 2)
    return pair[:, 0], pair[:, 1]


def _sorted(
    head: npt.NDArray[np.uint64], tail: npt.NDArray[np.uint64], values: Numbers
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], Numbers]:
    order = np.argsort(head, kind="stable")
    return head[order], tail[order], values[order]
