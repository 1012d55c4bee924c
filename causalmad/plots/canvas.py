"""What all plots share: axes that leave pyplot alone, and colours that print and that the colour-blind tell apart."""

from __future__ import annotations

import io
import textwrap
from functools import partial
from typing import Any

from causalmad.errors import SpecError

# Okabe and Ito's blue and vermilion, and lighter fills. In grey the fills are light and the others dark.
BLUE, RED, INK, GREY, PALE = "#0072b2", "#d55e00", "#333333", "#8c8c8c", "#b9cfe0"
KEY: dict[str, Any] = {"fontsize": "small", "framealpha": 0.85, "edgecolor": "none"}  # of legends


def axes(ax: Any, size: tuple[float, float]) -> Any:
    """Axes to draw on.

    Args:
        ax: the caller's axes, which are returned; None for new ones, on a figure (``ax.figure``) that pyplot does not
            know of: it needs no closing, and a notebook shows it where the axes are the last line of a cell.
        size: width and height of the new figure, in inches.

    Raises:
        SpecError: when matplotlib is not installed, or ``ax`` is something else.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SpecError(
            f"matplotlib cannot be imported: {error}",
            needed="matplotlib, for plots",
            tries=["pip install 'causalmad[plot]'"],
        ) from error
    if ax is None:
        figure: Any = Figure(figsize=size, layout="constrained")
        ax = figure.subplots()
        # Notebooks look for this method on objects of kinds that they do not know.
        figure._repr_png_ = ax._repr_png_ = partial(_png, figure)
    elif not hasattr(ax, "add_patch"):
        raise SpecError(
            f"ax= is a {type(ax).__name__}",
            needed="matplotlib axes",
            causes=["a figure", "the array of axes that subplots(1, 2) gives"],
            tries=["leave ax out", "ax=axes[0]"],
        )
    return ax


def bare(ax: Any) -> None:
    """Without the frame's upper and right line."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def titled(ax: Any, text: str) -> None:
    """A title; dollar signs in names start no formula."""
    ax.set_title(wrapped(text, 64), fontsize="medium", parse_math=False)


def wrapped(text: str, width: int = 44) -> str:
    """Long lines on several lines; nothing is left out."""
    return "\n".join(part for line in text.splitlines() for part in textwrap.wrap(line, width) or [""])


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
