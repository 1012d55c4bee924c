"""Trusted rows that do not fit into memory: read in chunks, as often as a fit needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from causalmad.errors import FitError
from causalmad.references.base import as_rows, resolution

Array = npt.NDArray[np.float64]
Chunks: TypeAlias = npt.ArrayLike | Iterable[npt.ArrayLike] | Callable[[], Iterable[npt.ArrayLike]]

_SLICE = 2**20  # numbers of a table, or memory map, that are read at a time: few enough for the cache
_BLOCKS = 1009  # blocks of rows after which their assignment to folds repeats


class Passes:
    """Chunks of trusted rows that can be read from the start again, each checked as it comes.

    Args:
        chunks: a table (n, d), for example ``numpy.load(path, mmap_mode="r")``, read a slice at a time; an iterable of
            tables (m, d), such as a list; or a function that returns a new iterator over them. A one-shot iterator can
            be read once.

    Raises:
        FitError: where ``chunks`` is none of these.
    """

    def __init__(self, chunks: Chunks) -> None:
        if not (callable(chunks) or isinstance(chunks, Iterable)):
            raise FitError(
                f"got {type(chunks).__name__}", needed="a table, an iterable of tables, or a function returning one"
            )
        self._chunks: Any = chunks
        self._last: object = None
        self._count: int | None = None
        self.resolution = 0.0  # of the numbers as they came, the coarsest of the chunks read so far

    def __iter__(self) -> Iterator[Array]:
        """The chunks (m, d), as finite numbers, from the first row on.

        Raises:
            FitError: where they can be read only once and were read before, a chunk is no table of finite numbers with
                the columns of the first, or there are other rows than the first time.
        """
        columns, seen = None, 0
        for chunk in self._start():
            where = f" from row {seen} on" if seen else ""
            rows = as_rows(chunk, what=f"trusted rows{where}", columns=columns)
            self.resolution = max(self.resolution, resolution(chunk))
            columns, seen = rows.shape[1], seen + len(rows)
            yield rows
        if self._count is not None and seen != self._count:
            raise _once(f"a second pass over the chunks gave {seen} rows after {self._count} in the first")
        self._count = seen

    def _start(self) -> Iterator[Any]:
        if isinstance(self._chunks, np.ndarray):
            table: npt.NDArray[Any] = self._chunks
            if table.ndim != 2 or not table.shape[1]:
                as_rows(table, what="trusted rows")
            size = max(_SLICE // table.shape[1], 1)
            return (table[start : start + size] for start in range(0, max(len(table), 1), size))
        start: Iterator[Any] = iter(self._chunks() if callable(self._chunks) else self._chunks)
        if start is self._last:  # kept, so that no other object can have its identity
            raise _once("a one-shot iterator, which is empty the second time, where the rows are needed twice")
        self._last = start
        return start


def subsample(chunks: Chunks, size: int, seed: int = 0) -> Array:
    """At most ``size`` of all rows, each set of rows as likely as any other, in the order in which they came.

    Memory for ``size`` rows and one chunk. Which rows are taken depends on the seed and the rows' places only, not on
    where chunks begin.

    Args:
        chunks: what `Passes` takes; read once.
        size: rows to keep.
        seed: seed of the draw.

    Raises:
        FitError: where ``size`` is below 1, or the chunks are no tables of finite numbers.
    """
    if size < 1:
        raise FitError(f"a subsample of {size} rows", needed="at least 1")
    draw = np.random.default_rng([seed, 31])
    kept, keys = None, np.empty(0)
    for rows in chunks if isinstance(chunks, Passes) else Passes(chunks):
        # The rows with the smallest of independent uniform keys are a uniform draw without replacement.
        fresh = draw.random(len(rows))
        keys = np.concatenate([keys, fresh])
        if len(keys) <= size:
            kept = rows.copy() if kept is None else np.concatenate([kept, rows])
            continue
        chosen = np.sort(np.argpartition(keys, size - 1)[:size])
        held = 0 if kept is None else len(kept)
        taken = rows[chosen[chosen >= held] - held]
        kept = taken if kept is None else np.concatenate([kept[chosen[chosen < held]], taken])
        keys = keys[chosen]
    if kept is None:
        raise FitError("got no chunks", needed="at least one row")
    return kept


def folds(start: int, count: int, number: int) -> npt.NDArray[np.int64]:
    """Fold (count,) in 0 to ``number`` - 1 of the rows from ``start`` on: a fixed shuffle of every ``number`` rows.

    All folds have the same size, give or take one, and a row's fold depends on its place only.
    """
    table = _shuffled(number)
    return np.resize(np.roll(table, -(start % len(table))), count)


def in_folds(chunks: Iterable[Array], count: int, number: int) -> Iterator[tuple[Array, npt.NDArray[np.int64]]]:
    """Each chunk (m, d) with the fold (m,) of its rows: as `folds`, but equal rows that follow each other share one.

    A detector hands rows over by content, so that copies of an input follow each other: none is scored by a fit that
    has seen its copy. Of more equal rows than a fold has places, the rest goes to other folds.

    Args:
        chunks: all rows.
        count: how many rows there are.
        number: how many folds.
    """
    table, most = _shuffled(number), max(count // number, 1)
    last, length, groups = None, 0, 0
    for chunk in chunks:
        if not len(chunk):
            continue
        differs = np.ones(len(chunk), dtype=np.bool_)
        differs[1:] = (chunk[1:] != chunk[:-1]).any(axis=1)
        differs[0] = last is None or bool((chunk[0] != last).any())
        places = np.arange(len(chunk))
        places -= np.maximum.accumulate(np.where(differs, places, -length))  # among rows that are equal
        group = groups - 1 + np.cumsum(places % most == 0)
        last, length, groups = chunk[-1], int(places[-1]) + 1, int(group[-1]) + 1
        yield chunk, table[group % len(table)]


def _shuffled(number: int) -> npt.NDArray[np.int64]:
    blocks = np.tile(np.arange(number), (_BLOCKS, 1))
    return np.random.default_rng(13).permuted(blocks, axis=1).ravel()


def _once(what: str) -> FitError:
    return FitError(
        what,
        needed="chunks that can be read from the start again, with the same rows",
        causes=["a generator, map or file handle", "a function that returns the same iterator every time"],
        tries=["a function that opens them: fit_chunks(lambda: read(path))", "a list of arrays", "a memory map"],
    )
