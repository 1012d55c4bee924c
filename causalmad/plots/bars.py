"""Bars of the parts of a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from causalmad.errors import SpecError
from causalmad.plots.canvas import BLUE, GREY, INK, RED, axes, bare, titled, wrapped


def bars(parts: Sequence[tuple[str, float]], title: str, top: int = 12, ax: Any = None) -> Any:
    """The axes with one bar for each part, the first above, and all that are not shown in one more.

    Args:
        parts: name and amount, the largest by size first; together the bars are as long as all amounts are.
        title: what stands above.
        top: how many parts have a bar of their own.
        ax: matplotlib axes; new ones without.

    Raises:
        SpecError: when ``top`` is no positive number.
    """
    if top < 1:
        raise SpecError(f"top={top}", needed="at least 1 bar")
    shown = [(wrapped(name), amount, RED if amount > 0 else BLUE) for name, amount in parts[:top]]
    if len(parts) > top:
        count = len(parts) - top
        name = f"{count} more column{'s' * (count > 1)}"
        shown.append((name, sum(amount for _, amount in parts[top:]), GREY))
    lines = sum(name.count("\n") + 1 for name, _, _ in shown)
    ax = axes(ax, (7.0, 1.2 + 0.26 * max(lines, 3)))
    names, amounts, colours = zip(*shown, strict=True) if shown else ((), (), ())
    drawn = ax.barh(range(len(shown)), amounts, color=colours, height=0.7)
    ax.bar_label(drawn, [f"{amount:.3g}" for amount in amounts], padding=3, fontsize="small", color=INK)
    ax.set_yticks(range(len(shown)), names, fontsize="small", parse_math=False)
    ax.invert_yaxis()
    ax.margins(x=0.12, y=0.02)
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.set_xlabel("contribution to the score")
    titled(ax, title)
    bare(ax)
    return ax
