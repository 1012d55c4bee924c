"""Drawing a hypothesis with matplotlib, causes to the left and the output to the right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import networkx as nx

if TYPE_CHECKING:
    from causalmad.hypotheses.graph import Hypothesis


def draw(hypothesis: Hypothesis, ax: Any = None, failing: Iterable[str] = ()) -> Any:
    """The axes with the graph drawn on them.

    Args:
        hypothesis: what to draw.
        ax: matplotlib axes; new ones without.
        failing: nodes to mark.
    """
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    graph = hypothesis.to_networkx()
    for depth, names in enumerate(nx.topological_generations(graph)):
        for name in names:
            graph.nodes[name]["depth"] = depth
    places = nx.multipartite_layout(graph, subset_key="depth")
    marked = set(failing)
    colours = ["#d9534f" if node in marked else "#dbe7f3" for node in graph]
    sites = {claim.name: "\n".join(map(str, claim.at)) for claim in hypothesis.claims}
    labels = {node: f"{node}\n{sites[node]}" if node in sites else node for node in graph}
    nx.draw_networkx_nodes(graph, places, ax=ax, node_color=colours, edgecolors="#33485c", node_size=2600)
    nx.draw_networkx_edges(graph, places, ax=ax, node_size=2600, edge_color="#33485c")
    nx.draw_networkx_labels(graph, places, labels, ax=ax, font_size=7)
    ax.set_title(hypothesis.name, fontsize=9)
    ax.margins(0.2)
    ax.set_axis_off()
    return ax
