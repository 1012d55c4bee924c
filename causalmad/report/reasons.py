"""Why every input scored as it did, cut down to what a page of ten thousand inputs can hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from causalmad.explanation import OWN
from causalmad.report.grids import Grid, grids, group_sums
from causalmad.signatures.base import Column

Floats: TypeAlias = npt.NDArray[np.float64]
Near: TypeAlias = tuple[tuple[str, float], ...]

_MOST = 600_000  # numbers that the blocks and the heat maps of all inputs may be made of together


@dataclass(frozen=True, eq=False)
class Chunk:
    """Reasons of some inputs as they were computed.

    Attributes:
        rows: (k,) which inputs.
        scores: (k,) anomaly scores.
        amounts: (k, d) contributions, which sum to the scores.
        values: (k, d) signatures.
        nearest: (k,) nearest trusted inputs and their distances.
        donors: (k,) what was replaced -> ids of the donors.
        method: how the contributions were found.
    """

    rows: tuple[int, ...]
    scores: Floats
    amounts: Floats
    values: Floats
    nearest: tuple[Near, ...]
    donors: tuple[Mapping[str, tuple[str, ...]], ...]
    method: str = OWN


@dataclass(frozen=True)
class Reasons:
    """Reasons of some inputs, the largest contributions one by one and the others as a sum.

    Attributes:
        columns: (d,) of the signature.
        trusted: (d,) mean of every column over the trusted inputs.
        blocks: (b,) names of the blocks of columns.
        grids: heat maps.
        rows: (k,) which inputs are explained.
        top: (k,) column, contribution and value of the columns that contribute most by size, the largest first.
        rest: (k,) contributions of all other columns together: with those in ``top`` they sum to the score.
        leading: (k,) the column that contributes most.
        parts: (k,) contributions of the blocks; empty where they would be too many numbers.
        cells: for every heat map (k,) contributions of its cells; empty where they would be too many numbers.
        totals: for every heat map (k,) contributions of all its cells together.
        nearest: (k,) ids and distances of the nearest trusted inputs.
        donors: (k,) what was replaced -> ids of the donors.
        method: how the contributions were found.
    """

    columns: tuple[Column, ...]
    trusted: tuple[float, ...]
    blocks: tuple[str, ...]
    grids: tuple[Grid, ...]
    rows: tuple[int, ...]
    top: tuple[tuple[tuple[int, float, float], ...], ...]
    rest: tuple[float, ...]
    leading: tuple[int, ...]
    parts: tuple[tuple[float, ...], ...]
    cells: tuple[tuple[tuple[float, ...], ...], ...]
    totals: tuple[tuple[float, ...], ...]
    nearest: tuple[Near, ...]
    donors: tuple[Mapping[str, tuple[str, ...]], ...]
    method: str = OWN

    def failed(self, place: int) -> int | None:
        """The block that contributes most to the score of the input at ``rows[place]``; None where none are kept."""
        if not self.parts:
            return None
        parts = self.parts[place]
        return max(range(len(parts)), key=parts.__getitem__)


def short(number: float, digits: int = 4) -> float:
    """A number rounded to some significant digits, so that it is short in a file."""
    return float(f"{number:.{digits}g}")


def keep(
    columns: tuple[Column, ...],
    trusted: Iterable[float],
    chunks: Iterable[Chunk],
    count: int,
    top: int,
    parts_of_input: Collection[str] = (),
) -> Reasons:
    """Reasons from chunks of them, none of which is held any longer than needed.

    Args:
        columns: (d,) of the signature.
        trusted: (d,) trusted means.
        chunks: reasons of some inputs each.
        count: how many inputs there are in all, by which it is decided what fits.
        top: how many columns are kept one by one.
        parts_of_input: names of the declared parts of the input.
    """
    names = tuple(dict.fromkeys(column.block for column in columns))
    index = {name: i for i, name in enumerate(names)}
    members = tuple(index[column.block] for column in columns)
    maps = grids(columns, parts_of_input)
    left = _MOST // max(count, 1)
    with_parts = 1 < len(names) <= left
    left -= len(names) if with_parts else 0
    held = []
    for grid in maps:
        held.append(len(grid.cells) <= left)
        left -= len(grid.cells) if held[-1] else 0
    rows: list[int] = []
    kept: list[tuple[tuple[int, float, float], ...]] = []
    rest: list[float] = []
    leading: list[int] = []
    parts: list[tuple[float, ...]] = []
    cells: list[list[tuple[float, ...]]] = [[] for _ in maps]
    totals: list[list[float]] = [[] for _ in maps]
    nearest: list[Near] = []
    donors: list[Mapping[str, tuple[str, ...]]] = []
    method = OWN
    for chunk in chunks:
        rows += chunk.rows
        method = chunk.method
        largest = _largest(chunk, top)
        kept += largest
        rest += [
            short(score - sum(amount for _, amount, _ in some), 6) if len(columns) > top else 0.0
            for score, some in zip(chunk.scores.tolist(), largest, strict=True)
        ]
        leading += chunk.amounts.argmax(1).tolist()
        if with_parts:
            parts += _rounded(group_sums(chunk.amounts, members, len(names)))
        for i, grid in enumerate(maps):
            sums = grid.sums(chunk.amounts)
            totals[i] += [short(total) for total in sums.sum(1).tolist()]
            cells[i] += _rounded(sums, 2) if held[i] else []
        nearest += [tuple((key, short(distance, 3)) for key, distance in near) for near in chunk.nearest]
        donors += chunk.donors
    return Reasons(
        columns,
        tuple(short(mean) for mean in trusted),
        names,
        maps,
        tuple(rows),
        tuple(kept),
        tuple(rest),
        tuple(leading),
        tuple(parts),
        tuple(map(tuple, cells)),
        tuple(map(tuple, totals)),
        tuple(nearest),
        tuple(donors),
        method,
    )


def _largest(chunk: Chunk, top: int) -> list[tuple[tuple[int, float, float], ...]]:
    order = np.argsort(-np.abs(chunk.amounts), axis=1, kind="stable")[:, :top]
    amounts = np.take_along_axis(chunk.amounts, order, axis=1).tolist()
    values = np.take_along_axis(chunk.values, order, axis=1).tolist()
    return [
        tuple((index, short(amount), short(value)) for index, amount, value in zip(*row, strict=True))
        for row in zip(order.tolist(), amounts, values, strict=True)
    ]


def _rounded(numbers: Floats, digits: int = 4) -> list[tuple[float, ...]]:
    return [tuple(short(number, digits) for number in row) for row in numbers.tolist()]
