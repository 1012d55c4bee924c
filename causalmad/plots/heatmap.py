"""Heatmap of the parts of a score, where they form a grid of layers and heads, positions or units."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from causalmad.errors import SiteError, SpecError
from causalmad.plots.canvas import INK, axes, titled
from causalmad.sites import Site

_NUMBERED = 120  # cells; more have no room for their numbers


class Part(NamedTuple):
    """One part of a score: its amount, and where it belongs, as a signature's column says it."""

    amount: float
    site: str
    unit: str
    position: str


def heatmap(parts: Sequence[Part], title: str, ax: Any = None) -> Any:
    """The axes with the grid: a row for each layer, and a column for each head, else position, else unit.

    Parts that share a cell are added up. Parts without a place on the grid are not drawn, and their sum is said above.

    Args:
        parts: the parts.
        title: what stands above.
        ax: matplotlib axes; new ones without. Beside them room is taken for the colour bar.

    Raises:
        SpecError: when there is no grid.
    """
    cells = list(zip(parts, _cells(parts), strict=True))
    placed = [(part.amount, *cell) for part, cell in cells if cell is not None]
    rows = sorted({row for _, row, _ in placed}, key=_natural)
    columns = sorted({column for _, _, column in placed}, key=_order)
    if len(columns) < 2:
        raise SpecError(
            "these columns form no grid",
            needed="columns at places in layers: layer x head, layer x position or layer x unit",
            causes=["columns by rank alone", "one column a layer", "a signature of the input or output"],
            tries=["explanation.plot()", "by='place' in the signature"],
        )
    grid = np.full((len(rows), len(columns)), np.nan)
    for amount, row, column in placed:
        at = rows.index(row), columns.index(column)
        grid[at] = np.nansum([grid[at], amount])
    ax = axes(ax, (min(max(2.6 + 0.42 * len(columns), 5.0), 9.0), min(1.9 + 0.34 * len(rows), 9.0)))
    largest = float(np.nanmax(np.abs(grid))) or 1.0
    ax.set_facecolor("#e6e6e6")
    image = ax.imshow(np.ma.masked_invalid(grid), cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    bar = ax.figure.colorbar(image, ax=ax)
    bar.set_label("contribution to the score", fontsize="small")
    bar.ax.tick_params(labelsize="small")
    names = [column[1] for column in columns]
    _ticks(ax.set_xticks, names, rotation=90 if max(map(len, names)) > 6 else 0)
    _ticks(ax.set_yticks, _short(rows))
    ax.set_xlabel(next(iter(columns))[0])
    ax.set_ylabel("layer")
    if grid.size <= _NUMBERED:
        for (y, x), amount in np.ndenumerate(grid):
            if np.isfinite(amount):
                colour = "white" if abs(amount) > 0.6 * largest else INK
                ax.text(x, y, f"{amount:.2g}", ha="center", va="center", fontsize="x-small", color=colour)
    rest = [part.amount for part, cell in cells if cell is None]
    said = f"\n{np.nansum(grid):.4g} on the grid"
    if rest:
        said += f", {sum(rest):.4g} in {len(rest)} other column{'s' * (len(rest) > 1)}"
    titled(ax, title + said)
    return ax


def _cells(parts: Sequence[Part]) -> list[tuple[str, tuple[str, str]] | None]:
    """For each part its row and (kind, name) of its column; None without a place on the grid."""
    sites = [_site(part.site) for part in parts]
    known = [(part, site) for part, site in zip(parts, sites, strict=True) if site is not None]
    headed = any(site.heads for _, site in known)
    positions = {_position(part, site) for part, site in known}
    found: list[tuple[str, tuple[str, str]] | None] = []
    for part, site in zip(parts, sites, strict=True):
        if site is None:
            found.append(None)
            continue
        layer, tail = _layer(site)
        if headed:
            name = ("head", ",".join(map(str, site.heads)) or tail or "layer")
        elif len(positions) > 1:
            name = ("position", _position(part, site) or "all")
        elif site.neurons:
            name = ("neurons", f"{site.neurons[0]}-{site.neurons[-1]}")
        else:
            name = ("unit", (tail if part.unit in ("", part.site) else part.unit) or "layer")
        found.append((layer, name))
    return found


def _site(text: str) -> Site | None:
    """The site; none where there is none, or several."""
    try:
        return Site.parse(text) if text and " " not in text else None
    except SiteError:
        return None


def _layer(site: Site) -> tuple[str, str]:
    """A site's path up to its first number, and the rest."""
    found = re.match(r"((?:.*?\.)??\d+)(?:\.(.*))?$", site.path)
    return (site.path, "") if found is None else (found[1], found[2] or "")


def _position(part: Part, site: Site) -> str:
    return part.position.removeprefix("@") or ("" if site.position is None else str(site.position))


def _order(column: tuple[str, str]) -> tuple[int, list[Any]]:
    """As read: what lies beyond, from the first token on, names, then back from the last token."""
    name = column[1]
    if re.fullmatch(r"-?\d+(-\d+)?", name):
        return (3 if name.startswith("-") else 1), [int(re.match(r"-?\d+", name)[0])]  # type: ignore[index]
    return (0 if name == "beyond" else 2), _natural(name)


def _natural(name: str) -> list[Any]:
    """Texts before numbers at every place, and numbers by size."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", name) if part]


def _short(rows: list[str]) -> list[str]:
    """Layers by their number alone, where nothing else differs."""
    stems = {row.rpartition(".")[0] for row in rows}
    return [row.rpartition(".")[2] for row in rows] if len(stems) == 1 else rows


def _ticks(put: Any, names: list[str], most: int = 24, **look: Any) -> None:
    """At most so many ticks, evenly spaced."""
    step = -(-len(names) // most)
    put(range(0, len(names), step), names[::step], fontsize="small", parse_math=False, **look)
