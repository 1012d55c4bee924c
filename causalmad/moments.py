"""Streaming mean and covariance, in memory that does not grow with the number of rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from causalmad.errors import FitError

Array = npt.NDArray[np.float64]

_BLOCK = 2**20  # numbers whose products are added at a time: the only temporary besides the scatter itself
_CACHED = 2**16  # numbers that are centred and added up at a time, while they are in the cache


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and scatter of the rows seen so far; every step gives a new object.

    Feeding rows in any batches gives what one batch gives, and merging two gives what their union gives, to 1e-10
    relative to the largest entry: deviations are always taken from a point among the rows, never as a difference of
    large sums of squares, and the mean is kept as its distance from that point, so that columns far from zero lose no
    digits.

    Args:
        n: rows seen.
        origin: (d,) about the mean of the first rows seen (zeros before).
        offset: (d,) mean of each column less the origin.
        scatter: (d, d) sum over rows of the outer product of their deviations from the mean.

    Example:
        >>> seen = Moments.empty(2).update([[0.0, 1.0]]).update([[2.0, 1.0]])
        >>> seen.n, seen.mean.tolist()
        (2, [1.0, 1.0])

    References:
        Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
        Pebay 2008, Sandia report SAND2008-6212.
    """

    n: int
    origin: Array
    offset: Array
    scatter: Array

    @classmethod
    def empty(cls, d: int) -> Moments:
        """Moments of no rows of ``d`` columns."""
        return cls(0, np.zeros(d), np.zeros(d), np.zeros((d, d)))

    @property
    def d(self) -> int:
        """Columns."""
        return len(self.origin)

    @property
    def mean(self) -> Array:
        """Mean (d,) of each column."""
        mean: Array = self.origin + self.offset
        return mean

    def update(self, X: npt.ArrayLike) -> Moments:
        """Moments of the rows seen so far and those of ``X`` (m, d); m may be zero.

        Raises:
            FitError: where ``X`` is not a table of numbers with this many columns.
        """
        return self.merge(Moments.of([X], self.d))

    @classmethod
    def of(cls, chunks: Iterable[npt.ArrayLike], d: int) -> Moments:
        """Moments of all rows of ``chunks``, tables (m, ``d``), at the price of their products ``X.T @ X``.

        Every chunk is centred block by block on the mean of the first rows, so that besides the chunk itself only one
        block and one (d, d) sum are in memory, and what the centre is off by is taken out once, at the end.

        Raises:
            FitError: where a chunk is not a table of numbers with ``d`` columns.
        """
        from scipy.linalg.blas import dsyrk

        n, origin, total = 0, np.zeros(d), np.zeros(d)
        products = np.zeros((d, d), order="F")
        size, part = max(_BLOCK // max(d, 1), 1), max(_CACHED // max(d, 1), 1)
        buffer = np.empty((0, d))
        for chunk in chunks:
            rows = np.asarray(chunk)
            if rows.ndim != 2 or rows.shape[1] != d:
                raise FitError(f"got rows of shape {rows.shape}", needed=f"(rows, {d}) numbers")
            for start in range(0, len(rows), size):
                block = rows[start : start + size]
                if not n:
                    # Distances from one row keep a constant column exact: a plain mean of 0.1s is not 0.1.
                    first = block[0].astype(np.float64)
                    origin = first + (block[:part] - first).mean(axis=0)
                if len(buffer) < len(block):
                    buffer = np.empty((len(block), d))
                deviations = buffer[: len(block)]
                for at in range(0, len(block), part):
                    piece = deviations[at : at + part]
                    np.subtract(block[at : at + part], origin, out=piece, dtype=np.float64)
                    total += piece.sum(axis=0)
                # The upper triangle of the sum of products so far, without a copy.
                products = dsyrk(1.0, deviations.T, 1.0, products, overwrite_c=1)
                n += len(block)
        if not n:
            return cls.empty(d)
        offset = total / n
        scatter = np.triu(products) + np.triu(products, 1).T - n * np.outer(offset, offset)
        return cls(n, origin, offset, scatter)

    def merge(self, other: Moments) -> Moments:
        """Moments of the union of the rows of both.

        Raises:
            FitError: where the two have different numbers of columns.
        """
        if self.d != other.d:
            raise FitError(f"cannot merge moments of {self.d} columns with moments of {other.d}")
        if not self.n or not other.n:
            return self if self.n else other
        n = self.n + other.n
        step = (other.origin - self.origin) + (other.offset - self.offset)
        scatter = self.scatter + other.scatter + np.outer(step, step) * (self.n * other.n / n)
        return Moments(n, self.origin, self.offset + step * (other.n / n), scatter)

    def covariance(self, ddof: int = 1) -> Array:
        """Covariance (d, d), the scatter divided by ``n - ddof``.

        Raises:
            FitError: where there are not more than ``ddof`` rows.
        """
        if self.n <= ddof:
            raise FitError(f"got {self.n} rows", needed=f"at least {ddof + 1} rows for a covariance")
        return self.scatter / (self.n - ddof)
