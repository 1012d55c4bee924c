"""From columns to heat maps: which layer and head, which position, and which patch of an image a column is about."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from causalmad.errors import SiteError
from causalmad.signatures.base import Column
from causalmad.sites import Site

_PATCH = re.compile(r"(\d+:\d+),(\d+:\d+)")
_STRETCH = re.compile(r"\d+:\d+")


@dataclass(frozen=True)
class Grid:
    """A heat map's frame; the values differ between inputs.

    Attributes:
        title: what it shows.
        kind: ``model``, ``positions`` or ``patches``.
        rows: names of the rows.
        columns: names of the columns.
        cells: (c,) row and column of every cell that some columns of the signature are about.
        members: (d,) cell of every column of the signature, -1 for those that are elsewhere.
    """

    title: str
    kind: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[int, int], ...]
    members: tuple[int, ...]

    def sums(self, amounts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(n, c) contributions of the cells, from (n, d) contributions of the columns."""
        return group_sums(amounts, self.members, len(self.cells))


def group_sums(amounts: npt.NDArray[np.float64], members: Sequence[int], count: int) -> npt.NDArray[np.float64]:
    """(n, count) sums of (n, d) amounts over groups of columns; ``members`` (d,) is -1 for columns of no group."""
    index = np.asarray(members, dtype=np.int64)
    inside = np.flatnonzero(index >= 0)
    table = sparse.csr_matrix((np.ones(len(inside)), (inside, index[inside])), shape=(len(index), count))
    return np.asarray(amounts @ table, dtype=np.float64)


def grids(columns: Sequence[Column], blocks: Collection[str] = ()) -> tuple[Grid, ...]:
    """The heat maps that these columns can fill; one of fewer than two cells would show nothing and is left out.

    Args:
        columns: (d,) of the signature.
        blocks: names of the declared parts of the input, which are places like positions.
    """
    prefixes = {_layer(column.site)[0] for column in columns if _layer(column.site)[1]}
    model = [_in_model(column, several=len(prefixes) > 1) for column in columns]
    places = [_at_position(column, blocks, several=len(prefixes) > 1) for column in columns]
    patches = [_in_image(column) for column in columns]
    known = (
        _grid("Where in the model", "model", model),
        _grid("At which position", "positions", places),
        _grid("Where in the image", "patches", patches),
    )
    return tuple(grid for grid in known if len(grid.cells) > 1)


def _grid(title: str, kind: str, places: Sequence[tuple[str, str] | None]) -> Grid:
    rows = sorted({place[0] for place in places if place}, key=_order)
    columns = sorted({place[1] for place in places if place}, key=_order)
    cells = list(dict.fromkeys(place for place in places if place))
    index = {cell: i for i, cell in enumerate(cells)}
    row_at, column_at = ({name: i for i, name in enumerate(names)} for names in (rows, columns))
    where = tuple((row_at[row], column_at[column]) for row, column in cells)
    members = tuple(-1 if place is None else index[place] for place in places)
    return Grid(title, kind, tuple(rows), tuple(columns), where, members)


def _in_model(column: Column, several: bool) -> tuple[str, str] | None:
    """(layer, head or part of the layer) of a column that has a single site."""
    if not column.site or " " in column.site:
        return None
    prefix, number, part = _layer(column.site)
    if not number:
        return prefix or "whole model", part
    return f"{prefix}.{number}" if several and prefix else f"layer {number}", part


def _at_position(column: Column, blocks: Collection[str], several: bool) -> tuple[str, str] | None:
    """(site or block of columns, position, stretch or declared part of the input) of a column that has one."""
    place = column.position.removeprefix("@")
    if not place and not column.site and (column.unit in blocks or _STRETCH.fullmatch(column.unit)):
        place = column.unit
    if not place or place.startswith("all"):
        return None
    inside = _in_model(column, several)
    return (" ".join(inside) if inside else column.block or "input"), place


def _in_image(column: Column) -> tuple[str, str] | None:
    found = _PATCH.fullmatch(column.unit)
    return (f"rows {found[1]}", f"columns {found[2]}") if found else None


def _layer(text: str) -> tuple[str, str, str]:
    """What stands before a site's layer number, the number, and which part of the layer it is."""
    try:
        site = Site.parse(text)
    except SiteError:
        return text, "", "output"
    names = site.path.split(".")
    at = next((i for i, name in enumerate(names) if name.isdigit()), None)
    part = "" if at is None else ".".join(names[at + 1 :])
    if site.heads:
        part = f"head {','.join(map(str, site.heads))}"
    elif site.side == "input":
        part = f"{part} input".strip()
    if at is None:
        return site.path, "", part or "output"
    return ".".join(names[:at]), names[at], part or "output"


def _order(text: str) -> tuple[tuple[int, int | str], ...]:
    """Numbers by size, within and at the end of names; positions from the end come last, those beyond all come first.

    ``beyond`` is further from the end than every position that has a column.
    """
    if text == "beyond":
        return ((-1, 0),)
    if re.fullmatch(r"-\d+", text):
        return ((3, int(text)),)
    return tuple(_pieces(text))


def _pieces(text: str) -> Iterable[tuple[int, int | str]]:
    for piece in re.findall(r"\d+|\D+", text):
        yield (1, int(piece)) if piece.isdigit() else (2, piece)
