"""Drawing a circuit with matplotlib: layers from left to right, width by weight, colour by its sign."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from causalmad.plots.canvas import axes

if TYPE_CHECKING:
    from causalmad.hypotheses.circuit import Circuit

_RAISES, _LOWERS, _INK, _FILL = "#b5651d", "#2b6ca3", "#33485c", "#dbe7f3"


def draw(circuit: Circuit, ax: Any = None) -> Any:
    """The axes with the circuit drawn on them.

    Args:
        circuit: what to draw; prune it first, or there is little to see.
        ax: matplotlib axes; new ones, of a figure of their own, without.
    """
    ax = axes(ax, (9, 5))
    places = _places(circuit)
    known = circuit.weights
    largest = max(map(abs, known.values()), default=0) or 1.0
    for u, v, weight in circuit.graph.edges(data="weight"):
        if circuit.level == "edges" and weight is None:
            continue
        strength = abs(weight or 0) / largest
        look = {"color": _colour(weight), "lw": 0.3 + 2.2 * strength, "alpha": 0.3 + 0.7 * strength}
        for head in _drawn(circuit, v):
            arrow = {"arrowstyle": "-|>", "shrinkA": 14, "shrinkB": 14, **look}
            ax.annotate("", places[head], places[u], arrowprops=arrow)
    for name, (x, y) in places.items():
        edge = _colour(known.get(name)) if circuit.level == "nodes" else _INK
        box = {"boxstyle": "round", "facecolor": _FILL, "edgecolor": edge}
        ax.text(x, y, name, ha="center", va="center", fontsize=7, bbox=box)
    xs, ys = zip(*places.values(), strict=True) if places else ((0,), (0,))
    ax.set_xlim(min(xs) - 0.5, max(xs) + 0.5)
    ax.set_ylim(min(ys) - 0.5, max(ys) + 0.5)
    ax.set_title(repr(circuit), fontsize=9)
    ax.set_axis_off()
    return ax


def _places(circuit: Circuit) -> dict[str, tuple[float, float]]:
    """Node -> where it is drawn; heads of a layer above each other, their receivers drawn as the head itself."""
    columns: dict[float, list[str]] = {}
    layers = [_layer(name) for name in circuit.graph if name not in ("input", "logits")]
    last = max(layers, default=0) + 1
    for name in circuit.graph:
        if "<" not in str(name):
            x = {"input": -1.0, "logits": last}.get(name)
            columns.setdefault(_layer(name) if x is None else x, []).append(name)
    return {name: (x, i - (len(names) - 1) / 2) for x, names in columns.items() for i, name in enumerate(names)}


def _layer(name: str) -> float:
    digits = name.partition(".")[0][1:]
    return float(digits) + (0.5 if name.startswith("m") else 0.0)


def _drawn(circuit: Circuit, receiver: str) -> list[str]:
    return list(circuit.graph.successors(receiver)) if "<" in receiver else [receiver]


def _colour(weight: float | None) -> str:
    if weight is None:
        return _INK
    return _RAISES if weight > 0 else _LOWERS
