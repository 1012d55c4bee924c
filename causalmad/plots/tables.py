"""Tables for notebooks: plain HTML made from rich tables, or from a few facts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_CELL = "padding:0.15em 0.6em;vertical-align:top"


def to_html(*tables: Any) -> str:
    """Rich tables as HTML, one below the other; their texts are taken as they are, never as markup.

    Args:
        tables: ``rich.table.Table``, whose cells are texts or ``rich.text.Text``.
    """
    return "\n".join(_from_rich(table) for table in tables)


def facts(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """An HTML table of names and what they are."""
    return _html(title, (), [(name, str(value)) for name, value in rows], ("left", "left"), "")


def _from_rich(table: Any) -> str:
    columns = [[_plain(cell) for cell in column.cells] for column in table.columns]
    sides = ["right" if column.justify == "right" else "left" for column in table.columns]
    heads = [_plain(column.header) for column in table.columns]
    return _html(_plain(table.title), heads, list(zip(*columns, strict=True)), sides, _plain(table.caption))


def _html(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], sides: Sequence[str], below: str) -> str:
    lines = ["<table>"]
    if title:
        lines.append(f'<caption style="caption-side:top;text-align:left;font-weight:bold">{escape(title)}</caption>')
    if heads:
        lines.append(f"<thead>{_row('th', heads, sides)}</thead>")
    lines += ["<tbody>", *(_row("td", row, sides) for row in rows), "</tbody>"]
    if below:
        style = f"{_CELL};text-align:left;white-space:pre-line"
        lines.append(f'<tfoot><tr><td colspan="{len(sides)}" style="{style}">{escape(below)}</td></tr></tfoot>')
    return "\n".join([*lines, "</table>"])


def _row(tag: str, cells: Sequence[str], sides: Sequence[str]) -> str:
    made = (f'<{tag} style="{_CELL};text-align:{s}">{escape(c)}</{tag}>' for c, s in zip(cells, sides, strict=True))
    return f"<tr>{''.join(made)}</tr>"


def _plain(text: Any) -> str:
    """Text of a title or cell, with or without a style."""
    return "" if text is None else str(getattr(text, "plain", text))
