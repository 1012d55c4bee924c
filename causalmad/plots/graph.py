"""A graph of claimed variables, causes to the left and the output to the right."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from itertools import pairwise
from typing import Any

import networkx as nx

from causalmad.plots.canvas import INK, PALE, RED, axes, titled

_POINTS = 8.3  # size of the text
_LETTER, _LINE, _GAP = 0.072, 0.155, 0.55  # inches: of such text, and between boxes


def graph(
    claimed: nx.DiGraph, notes: Mapping[str, str], title: str, failing: Collection[str] = (), ax: Any = None
) -> Any:
    """The axes with the graph: every node right of all its causes.

    Args:
        claimed: an acyclic graph.
        notes: node -> what stands below its name.
        title: what stands above.
        failing: nodes to mark, by a thick dashed frame and in words; names that are no nodes are listed above.
        ax: matplotlib axes; new ones without. Where there is too little room for it the text is smaller.
    """
    texts = {node: f"{node}\n{notes.get(node, '')}".strip() for node in claimed}
    ways, routes = _routed(claimed)
    places, (wide, high) = _places(ways, texts)
    width, height = min(wide, 20.0), min(high, 14.0)
    given, ax = ax is not None, axes(ax, (width + 0.1, height + 0.4))
    if given:
        width, height = (length / ax.figure.dpi for length in ax.get_window_extent().size)
    ax.set_xlim(0, wide)
    ax.set_ylim(high, 0)
    ax.set_axis_off()
    # The limits have room for everything, and what sizes the layout does not yet know cannot move it.
    look = {"ha": "center", "va": "center", "color": INK, "parse_math": False, "in_layout": False}
    size = _POINTS * min(1.0, width / wide, height / high)
    boxes = {}
    for node, text in texts.items():
        fails = node in failing
        frame = {"edgecolor": RED, "linestyle": "--", "linewidth": 2.2} if fails else {"edgecolor": INK, "linewidth": 1}
        box = {"boxstyle": "round,pad=0.5", "facecolor": "white" if fails else PALE, **frame}
        boxes[node] = ax.text(*places[node], text, fontsize=size, bbox=box, zorder=3, **look).get_bbox_patch()
        if fails:
            below = {"xycoords": boxes[node], "xytext": (0, -3), "textcoords": "offset points"}
            ax.annotate("fails", (0.5, 0), **{**look, "va": "top", "color": RED}, fontsize=size, **below)
    for way in routes:
        for start, end in pairwise(way):
            last = end == way[-1]
            arrow = {"arrowstyle": "-|>" if last else "-", "color": INK, "shrinkA": 0, "shrinkB": 2 if last else 0}
            ends = {"patchA": boxes.get(start), "patchB": boxes.get(end)}
            ax.annotate("", places[end], places[start], arrowprops={**arrow, **ends}, zorder=2, in_layout=False)
    others = [name for name in failing if name not in claimed]
    titled(ax, title + (f" (also failing: {', '.join(others)})" if others else ""))
    return ax


def _routed(claimed: nx.DiGraph) -> tuple[list[list[Hashable]], list[list[Hashable]]]:
    """Layers from left to right, and the way of every edge; an edge past a layer has a place of its own in it."""
    layers: list[list[Hashable]] = [sorted(names, key=str) for names in nx.topological_generations(claimed)]
    depth = {node: i for i, names in enumerate(layers) for node in names}
    routes = []
    for cause, effect in claimed.edges:
        between: list[Hashable] = [(cause, effect, i) for i in range(depth[cause] + 1, depth[effect])]
        for i, bend in enumerate(between, depth[cause] + 1):
            layers[i].append(bend)
        routes.append([cause, *between, effect])
    row = {node: float(i) for i, node in enumerate(layers[0])}
    for names in layers[1:]:
        before: dict[Hashable, list[float]] = {name: [] for name in names}
        for way in routes:
            for start, end in pairwise(way):
                if end in before:
                    before[end].append(row[start])
        names.sort(key=lambda name: sum(before[name]) / len(before[name]))
        row |= {node: i - (len(names) - len(layers[0])) / 2 for i, node in enumerate(names)}
    return layers, routes


def _places(
    layers: list[list[Hashable]], texts: Mapping[Hashable, str]
) -> tuple[dict[Hashable, tuple[float, float]], tuple[float, float]]:
    """Centre of every node and bend, and the size of the whole, in inches."""
    lines = max(text.count("\n") + 1 for text in texts.values())
    step = _LINE * lines + 0.4
    high = step * max(map(len, layers))
    places, left = {}, 0.15
    for names in layers:
        letters = max((max(map(len, texts[name].splitlines())) for name in names if name in texts), default=0)
        width = _LETTER * letters + 0.2
        for i, name in enumerate(names):
            places[name] = (left + width / 2, high / 2 + step * (i - (len(names) - 1) / 2))
        left += width + _GAP
    return places, (left - _GAP + 0.15, high)
