"""The graph of a hypothesis, laid out for a drawing: causes to the left, the output to the right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import networkx as nx

if TYPE_CHECKING:
    from causalmad.hypotheses.graph import Hypothesis

WIDTH, HEIGHT, _ACROSS, _DOWN, _LETTER = 168.0, 58.0, 60.0, 26.0, 26


@dataclass(frozen=True)
class Node:
    """A claimed variable, or the output.

    Attributes:
        name: of the node.
        sites: where it is claimed to be, in a line.
        x: left edge of its box.
        y: upper edge of its box.
        blocks: positions of the blocks of columns that test it, among all blocks.
    """

    name: str
    sites: str
    x: float
    y: float
    blocks: tuple[int, ...]

    @property
    def label(self) -> str:
        """The name as far as the box holds it."""
        return shorten(self.name, _LETTER - 4)

    @property
    def place(self) -> str:
        """The sites as far as the box holds them; the end says more than the start."""
        return self.sites if len(self.sites) <= _LETTER else f"…{self.sites[1 - _LETTER :]}"


@dataclass(frozen=True)
class Graph:
    """A hypothesis as a drawing.

    Attributes:
        name: of the hypothesis.
        nodes: causes before effects.
        edges: paths from the right edge of a cause to the left edge of its effect, as SVG writes them.
        width: of the drawing.
        height: of the drawing.
    """

    name: str
    nodes: tuple[Node, ...]
    edges: tuple[str, ...]
    width: float
    height: float

    @classmethod
    def of(cls, hypothesis: Hypothesis, blocks: Sequence[str]) -> Graph:
        """The drawing of a hypothesis.

        Args:
            hypothesis: the claim.
            blocks: names of the blocks of columns, such as ``claim sum``, by which nodes find what tests them.
        """
        graph = hypothesis.to_networkx()
        layers = list(nx.topological_generations(graph))
        for depth, names in enumerate(layers):
            for name in names:
                graph.nodes[name]["depth"] = depth
        places = nx.multipartite_layout(graph, subset_key="depth")
        sites = {claim.name: ", ".join(map(str, claim.at)) for claim in hypothesis.claims}
        most = max(map(len, layers))
        height = most * (HEIGHT + _DOWN) + _DOWN
        nodes = {}
        for depth, names in enumerate(layers):
            # The library orders a layer; the rows are spread evenly about the middle, so that boxes cannot touch.
            for row, name in enumerate(sorted(names, key=lambda name: -places[name][1])):
                y = (height - len(names) * (HEIGHT + _DOWN) + _DOWN) / 2 + row * (HEIGHT + _DOWN)
                tests = tuple(i for i, block in enumerate(blocks) if _tests(block, str(name)))
                nodes[name] = Node(str(name), sites.get(name, ""), 8 + depth * (WIDTH + _ACROSS), y, tests)
        edges = tuple(_path(nodes[cause], nodes[effect]) for cause, effect in graph.edges)
        width = len(layers) * (WIDTH + _ACROSS) - _ACROSS + 16
        return cls(hypothesis.name, tuple(nodes.values()), edges, width, height)


def shorten(text: str, most: int) -> str:
    """A text of at most ``most`` letters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _tests(block: str, node: str) -> bool:
    return re.fullmatch(rf"(.*: )?(claim )?{re.escape(node)}( as .*)?", block) is not None


def _path(cause: Node, effect: Node) -> str:
    x, y = cause.x + WIDTH, cause.y + HEIGHT / 2
    to, end = effect.x - 7, effect.y + HEIGHT / 2  # the arrow's head takes the rest
    bend = min((to - x) / 2, _ACROSS)
    return f"M{x:.1f} {y:.1f}C{x + bend:.1f} {y:.1f} {to - bend:.1f} {end:.1f} {to:.1f} {end:.1f}"
