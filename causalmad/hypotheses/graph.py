"""Hypothesis: a claim about a circuit, as a plain ``networkx.DiGraph`` of claimed variables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import numpy.typing as npt

from causalmad.errors import HypothesisError
from causalmad.sites import Site

_CYCLES = 20  # named at most

if TYPE_CHECKING:
    from causalmad.hypotheses.checks import Report

OUTPUT = "output"

Value = Callable[[Mapping[str, Any]], Any]


class ArrayValue(tuple[Any, ...]):
    """An array as a value: its shape and its entries on the grid of a tolerance, so that ``==`` compares it.

    Attributes:
        array: the array itself, which mechanisms are given.
    """

    array: npt.NDArray[Any]


@dataclass(frozen=True)
class Claim:
    """A claimed variable.

    Attributes:
        name: the node.
        at: where the variable is said to be: site texts, or sites (which may have a subspace).
        value: the variable as a function of the raw input (:meth:`causalmad.Inputs.row`): hashable, or an array, which
            is compared to within ``tolerance``. None claims a place without saying what it holds.
        mechanism: the variable as a function of its parents' values, by keyword; with one on every inner node the graph
            is a causal model, and an interchange has a predicted answer.
        tolerance: largest difference between entries of arrays that count as the same value.
    """

    name: str
    at: tuple[str | Site, ...]
    value: Value | None = None
    mechanism: Callable[..., Any] | None = None
    tolerance: float = 1e-6

    def of(self, row: Mapping[str, Any]) -> Hashable:
        """The value on one input, in a form that can be compared by ``==``: arrays on the grid of the tolerance.

        Raises:
            HypothesisError: when the function fails or its result cannot be compared.
        """
        if self.value is None:
            raise HypothesisError(f"node {self.name!r} claims a place without a value", tries=["value=lambda x: ..."])
        try:
            found = self.value(row)
        except Exception as error:
            raise HypothesisError(
                f"value() of node {self.name!r} failed: {type(error).__name__}: {error}",
                needed=f"a function of one input, with the keys {sorted(row)}",
            ) from error
        return comparable(found, self.tolerance, self.name)


class Hypothesis:
    """A claim about a circuit: where variables are, what they hold, and where information flows.

    Args:
        graph: nodes with the attributes ``at`` (site text, a Site, or a list of them), ``value``, optionally
            ``mechanism`` and ``tolerance``; edges mean "information is claimed to flow". The node ``causalmad.OUTPUT``
            stands for the model's output; it may have a ``mechanism``, which predicts the output's class. Sites that no
            node names are claimed to be irrelevant.

    Raises:
        HypothesisError: with every defect of the graph that can be seen without a model.

    Example:
        >>> import networkx as nx
        >>> claim = nx.DiGraph(name="parity")
        >>> claim.add_node("sum", at="1", value=lambda x: int(x["input"].sum()))
        >>> claim.add_edge("sum", OUTPUT)
        >>> Hypothesis(claim).claims[0].name
        'sum'

    References:
        Chan et al. 2022, "Causal scrubbing"; Geiger et al. 2021, arXiv 2106.02997.
    """

    def __init__(self, graph: nx.DiGraph) -> None:
        problems = graph_problems(graph)
        if problems:
            raise problems_error(str(getattr(graph, "name", "")), problems)
        self._graph = nx.freeze(graph.copy())

    @property
    def name(self) -> str:
        """Name of the graph."""
        return str(self._graph.name or "hypothesis")

    @cached_property
    def claims(self) -> tuple[Claim, ...]:
        """The claimed variables, causes before effects."""
        order = [node for node in nx.lexicographical_topological_sort(self._graph, key=str) if node != OUTPUT]
        return tuple(self._claim(node) for node in order)

    @property
    def output_mechanism(self) -> Callable[..., Any] | None:
        """The output's class as a function of its parents' values, if the graph says so."""
        mechanism: Callable[..., Any] | None = self._graph.nodes[OUTPUT].get("mechanism")
        return mechanism

    def claim(self, name: str) -> Claim:
        """One claimed variable."""
        return next(claim for claim in self.claims if claim.name == name)

    def parents(self, name: str) -> tuple[str, ...]:
        """The claimed causes of a node (or of ``OUTPUT``), in a fixed order."""
        return tuple(sorted(map(str, self._graph.predecessors(name))))

    def to_networkx(self) -> nx.DiGraph:
        """A copy of the graph."""
        return nx.DiGraph(self._graph)

    @classmethod
    def from_circuit(cls, circuit: nx.DiGraph | Iterable[Any], name: str = "circuit") -> Hypothesis:
        """A claim of places without values: the nodes of a circuit are said to do all the work.

        Args:
            circuit: sites; or pairs of them (edges); or a DiGraph whose nodes are sites or have ``at``.
            name: name of the hypothesis.
        """
        graph = nx.DiGraph(name=name)
        if isinstance(circuit, nx.DiGraph):
            for node, data in circuit.nodes(data=True):
                graph.add_node(str(node), **({} if node == OUTPUT else {"at": data.get("at", _where(node))}))
            graph.add_edges_from((str(a), str(b)) for a, b in circuit.edges)
        else:
            for part in circuit:
                ends = tuple(part) if isinstance(part, (tuple, list)) else (part,)
                graph.add_nodes_from((str(end), {} if end == OUTPUT else {"at": _where(end)}) for end in ends)
                graph.add_edges_from([tuple(map(str, ends))] if len(ends) > 1 else [])
        for node in list(graph):
            if node == OUTPUT:
                continue
            graph.nodes[node].setdefault("at", node)
            if not any(graph.successors(node)):
                graph.add_edge(node, OUTPUT)
        return cls(graph)

    def check(self, model: Any, trusted: Any, *, seed: int = 0) -> Report:
        """Every defect of the claim on this model and these trusted inputs at once; see :mod:`checks`.

        Args:
            model: whatever :func:`causalmad.open_model` takes.
            trusted: inputs on which the claim should hold, with what its functions read.
            seed: of the donors.
        """
        from causalmad.hypotheses.checks import check

        return check(self, model, trusted, seed=seed)

    def to_json(self) -> str:
        """The claim as text: functions by name, bases of subspaces as numbers; see :mod:`written`.

        Raises:
            HypothesisError: when a function has no name that another process could find.
        """
        from causalmad.hypotheses.written import to_text

        return to_text(self)

    @classmethod
    def from_json(cls, text: str, functions: Hypothesis | Mapping[str, Callable[..., Any]] | None = None) -> Hypothesis:
        """The claim that :meth:`to_json` wrote; a file never makes anything but causalmad's own tasks be imported.

        Args:
            text: the claim as text.
            functions: the same hypothesis, or ``"module:name"`` -> function, for functions that are not causalmad's.

        Raises:
            HypothesisError: when the text is no hypothesis, or a function is missing.
        """
        from causalmad.hypotheses.written import from_text

        return from_text(text, functions)

    @classmethod
    def load(cls, name: str) -> Hypothesis:
        """The hypothesis called ``"module:name"``: an object, or a function without arguments that returns one.

        The module is imported and its code runs, as the caller asked for.

        Raises:
            HypothesisError: when it is not there or is no hypothesis.
        """
        from causalmad.hypotheses.written import import_hypothesis

        return import_hypothesis(name)

    def to_pyvene(self, model: Any) -> Any:
        """The ``pyvene.IntervenableConfig`` of the claims' interchange interventions; see :mod:`pyvene`."""
        from causalmad.hypotheses.pyvene import to_pyvene

        return to_pyvene(self, model)

    def draw(self, ax: Any = None, failing: Iterable[str] = ()) -> Any:
        """The graph drawn on matplotlib axes, causes to the left.

        Args:
            ax: axes to draw on; without, new ones, of a figure (``ax.figure``) that pyplot does not know of.
            failing: nodes to mark, such as ``[explanation.failed]``; what is no node is listed in the title.

        Raises:
            SpecError: when matplotlib is not installed.
        """
        from causalmad.hypotheses.drawing import notes
        from causalmad.plots.graph import graph

        return graph(self._graph, notes(self), self.name, list(failing), ax)

    def __eq__(self, other: object) -> bool:
        """Same nodes, attributes and edges."""
        return isinstance(other, Hypothesis) and _plain(self._graph) == _plain(other._graph)

    def __hash__(self) -> int:
        """Hash of the names and edges."""
        return hash((self.name, tuple(sorted(map(str, self._graph.edges)))))

    def __repr__(self) -> str:
        """Name and size."""
        return f"Hypothesis({self.name!r}, {len(self.claims)} claims, {self._graph.number_of_edges()} edges)"

    def _claim(self, node: str) -> Claim:
        data = self._graph.nodes[node]
        tolerance = float(data.get("tolerance", 1e-6))
        return Claim(node, sites_at(data["at"]), data.get("value"), data.get("mechanism"), tolerance)


def graph_problems(graph: nx.DiGraph) -> list[str]:
    """What is wrong with a graph before any model is seen, one line each."""
    if not isinstance(graph, nx.DiGraph):
        return [f"a {type(graph).__name__} is no networkx.DiGraph"]
    problems = []
    if OUTPUT not in graph or not any(graph.predecessors(OUTPUT)):
        problems.append(f"no edge leads to causalmad.OUTPUT ({OUTPUT!r}), so nothing is claimed about the output")
    for cycle in islice(nx.simple_cycles(graph), _CYCLES):  # a dense graph has more than anybody could wait for
        first = cycle.index(min(cycle, key=str))  # networkx starts anywhere
        turned = [*cycle[first:], *cycle[: first + 1]]
        problems.append("cycle: " + " -> ".join(map(str, turned)))
    for node, data in graph.nodes(data=True):
        problems += [f"node {node!r}: {problem}" for problem in _node_problems(graph, node, data)]
    return problems


def problems_error(name: str, problems: list[str]) -> HypothesisError:
    """All problems in one error."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return HypothesisError(f"{count} in {name or 'the hypothesis'!r}:\n" + "\n".join(f"  {line}" for line in problems))


def comparable(value: Any, tolerance: float, node: str) -> Hashable:
    """A value in a form that ``==`` can compare.

    Raises:
        HypothesisError: when it is neither hashable nor an array of numbers.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.generic):
        return value.item()  # type: ignore[no-any-return]
    if isinstance(value, (np.ndarray, list)):
        array = np.asarray(value, dtype=object if isinstance(value, list) and _ragged(value) else None)
        if array.dtype.kind not in "fiub":
            raise HypothesisError(
                f"value() of node {node!r} is an array of {array.dtype}", needed="numbers", tries=["tuple(...)"]
            )
        if array.ndim == 0:
            return array.item()  # type: ignore[no-any-return]
        found = ArrayValue((array.shape, tuple(np.round(array.astype(float) / tolerance).ravel().tolist())))
        found.array = array
        return found
    try:
        hash(value)
    except TypeError as error:
        raise HypothesisError(
            f"value() of node {node!r} is a {type(value).__name__}, which is not hashable",
            needed="a number, text, a tuple of them, or an array",
            tries=["tuple(...)", "np.array(...)"],
        ) from error
    return value  # type: ignore[no-any-return]


def _ragged(rows: list[Any]) -> bool:
    try:
        np.asarray(rows)
    except ValueError:
        return True
    return False


def _node_problems(graph: nx.DiGraph, node: Any, data: Mapping[str, Any]) -> list[str]:
    known = {"mechanism", "weight", "layer", *(() if node == OUTPUT else ("at", "value", "tolerance"))}
    problems = [f"unknown attribute {key!r}" for key in sorted(set(data) - known, key=str)]
    functions = [key for key in ("value", "mechanism") if key in known and data.get(key) is not None]
    problems += [f"{key}= is not a function" for key in functions if not callable(data[key])]
    if node == OUTPUT:
        return [*problems, *(["the output has no effects"] if any(graph.successors(node)) else [])]
    if not isinstance(node, str):
        problems.append("names are texts")
    if not _is_place(data.get("at")):
        problems.append("at= is missing: a site such as 'transformer.h.5.attn#head=3@-1', or a list of them")
    tolerance = data.get("tolerance", 1.0)
    if not isinstance(tolerance, (int, float)) or not 0 < tolerance <= sys.float_info.max:
        problems.append(f"tolerance={tolerance!r} is no positive number")
    if OUTPUT in graph and not nx.has_path(graph, node, OUTPUT):
        problems.append("unreachable: no path leads from it to the output")
    return problems


def _is_place(at: Any) -> bool:
    if isinstance(at, (str, Site)):
        return bool(at)
    return isinstance(at, (list, tuple)) and bool(at) and all(site and isinstance(site, (str, Site)) for site in at)


def sites_at(at: str | Site | Iterable[str | Site]) -> tuple[str | Site, ...]:
    """The attribute ``at`` as a tuple."""
    return (at,) if isinstance(at, (str, Site)) else tuple(at)


def _where(node: Any) -> str | Site:
    return node if isinstance(node, Site) else str(node)


def _plain(graph: nx.DiGraph) -> tuple[Any, Any]:
    nodes = {
        name: {key: sites_at(value) if key == "at" else value for key, value in data.items()}
        for name, data in graph.nodes(data=True)
    }
    return nodes, set(graph.edges)
