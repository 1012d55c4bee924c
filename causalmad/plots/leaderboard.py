"""Detectors beside each other: the worst task with its interval, and the mean over tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from causalmad.plots.canvas import BLUE, GREY, INK, KEY, axes, bare, titled


@dataclass(frozen=True)
class Row:
    """A detector's line.

    Attributes:
        name: the detector, with what there is to say of it.
        baseline: whether the others are to be compared with it.
        worst: AUROC on its worst task; None where it was measured nowhere.
        interval: of the worst.
        mean: AUROC over its tasks.
        task: the worst task.
    """

    name: str
    baseline: bool = False
    worst: float | None = None
    interval: tuple[float, float] = (0.0, 0.0)
    mean: float = 0.0
    task: str = ""


def leaderboard(rows: Sequence[Row], title: str, ax: Any = None) -> Any:
    """The axes with a line for each detector, the first above.

    Args:
        rows: the detectors; baselines are bold, and a line marks the worst task of each.
        title: what stands above.
        ax: matplotlib axes; new ones without.
    """
    ax = axes(ax, (8.0, 1.3 + 0.27 * max(len(rows), 3)))
    known = [(y, row, row.worst) for y, row in enumerate(rows) if row.worst is not None]
    for y, row, _ in known:
        ax.plot(row.interval, (y, y), color=BLUE, linewidth=1.4, solid_capstyle="butt", zorder=2)
    for i, worst in enumerate(worst for _, row, worst in known if row.baseline):
        name = None if i else "the baseline's worst task"
        ax.axvline(worst, color=INK, linestyle="--", linewidth=0.9, label=name, zorder=1)
    places = [y for y, _, _ in known]
    ax.plot([worst for _, _, worst in known], places, "o", color=BLUE, label="worst task, 95 % interval", zorder=4)
    means = [row.mean for _, row, _ in known]
    ax.plot(means, places, "D", color=INK, markerfacecolor="white", label="mean over tasks", zorder=3)
    ax.axvline(0.5, color=GREY, linestyle=":", linewidth=1, label="chance", zorder=1)
    ax.set_yticks(range(len(rows)), [row.name for row in rows], fontsize="small", parse_math=False)
    for tick, row in zip(ax.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if row.baseline else "normal")
    for y, row in enumerate(rows):
        said = row.task if row.worst is not None else "applies to no task"
        look: dict[str, Any] = {"va": "center", "fontsize": "small", "color": INK, "parse_math": False}
        ax.annotate(said, (1.02, y), xycoords=("axes fraction", "data"), **look)
    ax.annotate("worst task", (1.02, 1.02), xycoords="axes fraction", fontsize="small", color=GREY)
    ax.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    ax.set_xlabel("AUROC")
    titled(ax, title)
    ax.legend(**KEY)
    bare(ax)
    return ax
