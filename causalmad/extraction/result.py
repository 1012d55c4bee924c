"""What an extraction gives: rows that are read when they are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from causalmad.digests import Numbers
from causalmad.moments import Moments
from causalmad.signatures.base import Column, Signatures

if TYPE_CHECKING:
    from causalmad.extraction.cache import Kept
    from causalmad.extraction.shards import Values


@dataclass(frozen=True, eq=False, repr=False)
class Extraction:
    """Signatures of some inputs, in the order of the inputs; on disk where there is a cache, and mapped from there.

    Attributes:
        ids: (n,) ids of the inputs.
        columns: (d,) what each number is.
        computed: how many rows were computed.
        found: how many rows were in the cache. An input that comes several times is computed once, and is counted here
            every other time.
        where: (n,) where each row is kept.
        kept: what keeps them.
        moments: of all rows, where they were asked for.
    """

    ids: tuple[str, ...]
    columns: tuple[Column, ...]
    computed: int
    found: int
    where: Numbers
    kept: Kept
    moments: Moments | None = None

    def __repr__(self) -> str:
        """How many of what, in a line."""
        return f"Extraction({len(self)} x {len(self.columns)}, {self.computed} rows computed, {self.found} found)"

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Any) -> Values:
        """(m, d) float32 of some rows: an index, a slice, a list or an array of positions or of booleans."""
        return self.kept.read(np.atleast_1d(self.where[rows]))

    @property
    def values(self) -> Values:
        """(n, d) float32, all in memory."""
        return self.kept.read(self.where)

    @property
    def signatures(self) -> Signatures:
        """All rows in memory, with their ids and columns."""
        return Signatures(self.ids, self.columns, self.values)

    def chunks(self, size: int = 1024) -> Iterator[Values]:
        """(m, d) rows of at most ``size`` inputs at a time, in order.

        A reference that fits in constant memory takes ``extraction.chunks``, without brackets: it reads them twice.

        Args:
            size: rows in memory at a time.
        """
        return (self[start : start + size] for start in range(0, len(self), size))
