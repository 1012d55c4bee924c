"""A circuit: the edges or nodes of a model that matter, with weights, to prune, draw, keep and test."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import networkx as nx
import torch
from torch import Tensor

from causalmad.errors import HypothesisError, StoreError

if TYPE_CHECKING:
    from causalmad.hypotheses.computation import Computation
    from causalmad.hypotheses.donors import Donors
    from causalmad.hypotheses.faithfulness import Faithfulness
    from causalmad.hypotheses.graph import Hypothesis
    from causalmad.inputs import Inputs
    from causalmad.targets import Readout, Target

_SCHEMA = 1
_ENDS = ("input", "logits")


@dataclass(frozen=True, eq=False)
class Circuit:
    """Some edges or nodes of a model's computation, each with a weight.

    Attributes:
        graph: a frozen directed graph. Its edges go from senders to receivers and carry a ``weight``; a receiver such
            as ``a1.h2<q>`` has an edge without weight to the head whose value it goes into. Senders carry ``at``, their
            site in the model. With ``level="nodes"`` the nodes carry the weights and all edges between them stand.
        level: whether ``edges`` or ``nodes`` are kept or left out.
        total: how many edges (or nodes, without input and logits) the whole model has, of which shares are taken.
        method: how the weights came about.
    """

    graph: nx.DiGraph
    level: Literal["edges", "nodes"]
    total: int
    method: str = ""

    @classmethod
    def of_edges(
        cls, computation: Computation, weights: Tensor, kept: Tensor | None = None, method: str = ""
    ) -> Circuit:
        """A circuit of edges.

        Args:
            computation: the model as a graph.
            weights: (senders, receivers) weights.
            kept: (senders, receivers) bool, the edges that belong to it; all of them without.
            method: how the weights came about.
        """
        graph = nx.DiGraph()
        chosen = computation.allowed if kept is None else computation.allowed & kept
        for u, r in chosen.nonzero().tolist():
            sender, receiver = computation.senders[u], computation.receivers[r]
            graph.add_edge(sender, receiver, weight=float(weights[u, r]))
        for receiver in [name for name in graph if name not in computation.senders]:
            for head in computation.heads_of(receiver):
                graph.add_edge(receiver, head)
        for name in graph:
            if name in computation.senders:
                graph.nodes[name]["at"] = str(computation.site(name))
        return cls(nx.freeze(graph), "edges", int(computation.allowed.sum()), method)

    @classmethod
    def of_nodes(cls, computation: Computation, weights: Sequence[float] | Tensor, method: str = "") -> Circuit:
        """A circuit of nodes.

        Args:
            computation: the model as a graph.
            weights: (senders,) weights; the input's plays no part.
            method: how the weights came about.
        """
        graph = nx.DiGraph()
        for name, weight in zip(computation.senders, weights, strict=True):
            graph.add_node(name, weight=float(weight), at=str(computation.site(name)))
        for u, r in computation.allowed.nonzero().tolist():
            for node in computation.heads_of(computation.receivers[r]) or ("logits",):
                graph.add_edge(computation.senders[u], node)
        return cls(nx.freeze(graph), "nodes", len(computation.senders) - 1, method)

    @property
    def weights(self) -> dict[Any, float]:
        """Edge (or node) -> weight: about how much the target changes when a donor's value comes in its place."""
        if self.level == "nodes":
            return {node: weight for node, weight in self.graph.nodes(data="weight") if node not in _ENDS}
        return {(u, v): weight for u, v, weight in self.graph.edges(data="weight") if weight is not None}

    def __len__(self) -> int:
        """How many edges (or nodes) are kept."""
        return len(self.weights)

    def prune(self, share: float | None = None, *, count: int | None = None) -> Circuit:
        """The strongest edges (or nodes) by absolute weight, without those that lead nowhere.

        Args:
            share: of all edges (or nodes) of the model, rounded down.
            count: how many, in place of a share. Dead ends are taken away after counting.

        Raises:
            HypothesisError: when neither or both are given, or the share is not between 0 and 1.
        """
        if (share is None) == (count is None) or not 0 <= (share or 0) <= 1 or (count or 0) < 0:
            raise HypothesisError(
                f"prune(share={share}, count={count})",
                needed="a share from 0 to 1, or a count",
                tries=["prune(0.05)", "prune(count=20)"],
            )
        known = self.weights
        most = int(share * self.total) if share is not None else int(count or 0)
        # Equal weights fall in the order of the model.
        best = set(sorted(known, key=lambda key: -abs(known[key]))[:most])
        if self.level == "nodes":
            return self._with(self.graph.subgraph([*best, *_ENDS]).copy())
        graph = nx.DiGraph(self.graph)
        graph.remove_edges_from([edge for edge in known if edge not in best])
        return self._with(_alive(graph))

    def kept(self, computation: Computation) -> Tensor:
        """(senders, receivers) bool: which edges of a model the circuit keeps.

        Raises:
            HypothesisError: when it names what the model does not have.
        """
        table = torch.zeros_like(computation.allowed)
        if self.level == "nodes":
            for name in self.graph:
                if name != "logits":
                    table[computation.sender(name)] = True
            table[computation.sender("input")] = True
        else:
            for sender, receiver in self.weights:
                table[computation.sender(sender), computation.receiver(receiver)] = True
        return table & computation.allowed

    def to_networkx(self) -> nx.DiGraph:
        """A copy of the graph that may be changed."""
        return nx.DiGraph(self.graph)

    def to_hypothesis(self, name: str = "circuit") -> Hypothesis:
        """The claim that the circuit's heads and MLPs do all the work: their sites, without values.

        Queries, keys and values are merged into their heads; the input, which is no part of the model, is left out.

        Raises:
            HypothesisError: when there is no head and no MLP in it.
        """
        from causalmad.hypotheses.graph import OUTPUT, Hypothesis

        merged = nx.DiGraph(name=name)
        for u, v in self.graph.edges:
            for node in list(self.graph.successors(v)) if "<" in v else [v]:
                if u != "input" and "<" not in u:
                    merged.add_edge(u, OUTPUT if node == "logits" else node)
                elif "<" not in u:
                    merged.add_node(OUTPUT if node == "logits" else node)
        merged.remove_nodes_from([node for node in merged if node != OUTPUT and "at" not in self.graph.nodes[node]])
        nx.set_node_attributes(merged, {node: self.graph.nodes[node]["at"] for node in merged if node != OUTPUT}, "at")
        if not set(merged) - {OUTPUT}:
            raise HypothesisError(f"{self!r} holds no head and no MLP", tries=["a larger share"])
        return Hypothesis.from_circuit(merged, name)

    def to_json(self) -> str:
        """The circuit as text."""
        nodes = [[name, dict(data)] for name, data in self.graph.nodes(data=True)]
        edges = [[u, v, data.get("weight")] for u, v, data in self.graph.edges(data=True)]
        data = {"schema": _SCHEMA, "level": self.level, "total": self.total, "method": self.method}
        return json.dumps({**data, "nodes": nodes, "edges": edges})

    @classmethod
    def from_json(cls, text: str) -> Circuit:
        """The circuit that :meth:`to_json` wrote.

        Raises:
            StoreError: when the text is no circuit.
        """
        try:
            data = json.loads(text)
            graph = nx.DiGraph()
            for name, attributes in data["nodes"]:
                graph.add_node(_name(name), **_attributes(attributes))
            for u, v, weight in data["edges"]:
                graph.add_edge(_name(u), _name(v), **({} if weight is None else _attributes({"weight": weight})))
            level, total, method, schema = data["level"], int(data["total"]), str(data["method"]), data["schema"]
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise StoreError(f"this is no circuit: {error!r}", needed="what Circuit.to_json wrote") from error
        weighed = level != "nodes" or all("weight" in row for name, row in graph.nodes(data=True) if name not in _ENDS)
        if schema != _SCHEMA or level not in ("edges", "nodes") or total < 0 or not weighed:
            raise StoreError(
                f"a circuit of schema {schema!r}, level {level!r}", needed=f"schema {_SCHEMA}, all weights"
            )
        return cls(nx.freeze(graph), level, total, method)

    def draw(self, ax: Any = None) -> Any:
        """Matplotlib axes with the circuit: layers from left to right, width by weight, colour by its sign."""
        from causalmad.hypotheses.circuit_drawing import draw

        return draw(self, ax)

    def faithfulness(
        self,
        model: Any,
        inputs: Inputs,
        shares: Sequence[float] | None = None,
        *,
        donors: Donors | int = 4,
        target: Target | Readout | None = None,
        seed: int = 0,
    ) -> Faithfulness:
        """How much of the target the pruned circuits keep; see :mod:`causalmad.hypotheses.faithfulness`.

        Args:
            model: whatever :func:`causalmad.open_model` takes.
            inputs: on which it is tested.
            shares: of all edges (or nodes) of the model.
            donors: trusted donors, or how many to draw from the inputs.
            target: the metric, by default the margin of the model's own answer.
            seed: for the draw.
        """
        from causalmad.hypotheses.faithfulness import SHARES, faithfulness

        return faithfulness(model, self, inputs, shares or SHARES, donors=donors, target=target, seed=seed)

    def __repr__(self) -> str:
        """What is kept of what."""
        return f"Circuit({len(self)} of {self.total} {self.level}, method={self.method!r})"

    def _with(self, graph: nx.DiGraph) -> Circuit:
        return Circuit(nx.freeze(graph), self.level, self.total, self.method)


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name of a node")
    return value


def _attributes(given: dict[str, Any]) -> dict[str, Any]:
    """A weight that is a number, and a site that is a text."""
    if not isinstance(given, dict):
        raise TypeError(f"{given!r} is no attributes")
    for key, value in given.items():
        if key not in ("weight", "at") or (key == "at" and not isinstance(value, str)):
            raise TypeError(f"{key}={value!r} of a node")
    found = {key: float(value) if key == "weight" else value for key, value in given.items()}
    if math.isnan(found.get("weight", 0.0)):
        raise ValueError("a weight that is no number")
    return found


def _alive(graph: nx.DiGraph) -> nx.DiGraph:
    """What lies on a way from the input to the logits."""
    ends: list[set[Any]] = []
    for end, reach in (("input", nx.descendants), ("logits", nx.ancestors)):
        ends.append({end, *reach(graph, end)} if end in graph else set())
    found = nx.DiGraph(graph.subgraph(_in_order(graph, ends[0] & ends[1])))
    found.add_nodes_from((end, graph.nodes.get(end, {})) for end in _ENDS)
    return found


def _in_order(graph: nx.DiGraph, names: Iterable[Any]) -> list[Any]:
    wanted = set(names)
    return [name for name in graph if name in wanted]
