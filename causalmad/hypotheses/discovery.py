"""Discovery: which edges or nodes carry the behaviour, found on trusted inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import networkx as nx
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from causalmad.errors import HypothesisError
from causalmad.hypotheses.circuit import Circuit
from causalmad.hypotheses.computation import Computation
from causalmad.hypotheses.donors import Donors
from causalmad.hypotheses.edge_attribution import METHODS, EdgeAttributor
from causalmad.hypotheses.edges import EdgePatcher
from causalmad.hypotheses.rewiring import CURRENT, DONOR
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel, open_model
from causalmad.models.clean import Clean
from causalmad.targets import Readout, Target, TopMargin, as_target, divergence

_HELD = 2**27  # numbers of clean runs held at once

Method = Literal["eap-ig", "eap", "eap-ig-activations", "acdc", "exact"]


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """A score of every edge for every input.

    Attributes:
        computation: the model as a graph, whose ``edges`` are in the order of the columns.
        values: (n, edges) change of the target, exact or to first order, when the edge carries a donor's value.
    """

    computation: Computation
    values: Tensor

    def table(self) -> Tensor:
        """(senders, receivers) mean over inputs; zero where no edge is."""
        table = torch.zeros(self.computation.allowed.shape)
        table[self.computation.allowed] = self.values.mean(0)
        return table


def edge_scores(
    model: Any,
    inputs: Any,
    method: Method = "eap-ig",
    *,
    donors: Donors | int = 4,
    target: Target | Readout | None = None,
    steps: int = 5,
    seed: int = 0,
) -> EdgeScores:
    """What every edge does to the target, input by input.

    Args:
        model: any model that :func:`causalmad.open_model` takes.
        inputs: the inputs.
        method: ``eap``, ``eap-ig``, ``eap-ig-activations`` (one backward pass per batch, times donors and steps), or
            ``exact``, one run per input, edge and donor.
        donors: trusted donors, or how many to draw from the inputs; an input is never its own.
        target: the scalar, by default the margin of the model's own answer.
        steps: points of ``eap-ig``.
        seed: for the draw.

    Raises:
        HypothesisError: when there is no such method, or no step.
    """
    if method not in (*METHODS, "exact") or steps < 1:
        raise HypothesisError(
            f"method={method!r}, steps={steps}", needed="at least one step", tries=[*map(repr, METHODS), "'exact'"]
        )
    patcher, known = _prepared(model, inputs, donors, seed)
    graph, question = patcher.computation, as_target(target or TopMargin())
    which = torch.as_tensor(patcher.donors.of(known))
    attributor = EdgeAttributor(patcher, question, method, steps)
    found = torch.zeros(len(known), len(graph.edges))
    with patcher.model.quiet(), torch.inference_mode(False):
        for batch in patcher.batches(known):
            chosen = which[torch.as_tensor(batch.rows)]
            if method == "exact":
                found[torch.as_tensor(batch.rows)] = _exact(patcher, question, batch, chosen)
            else:
                scores = attributor.scores(batch, chosen)
                found[torch.as_tensor(batch.rows)] = scores.cpu()[:, graph.allowed]
    return EdgeScores(graph, found)


def discover(
    model: Any,
    trusted: Any,
    method: Method = "eap-ig",
    *,
    level: Literal["edges", "nodes"] = "edges",
    donors: Donors | int = 4,
    target: Target | Readout | None = None,
    steps: int = 5,
    threshold: float = 0.01,
    seed: int = 0,
) -> Circuit:
    """A circuit of everything with weights, to prune; for ``acdc`` what is left of it.

    Args:
        model: any model that :func:`causalmad.open_model` takes.
        trusted: inputs on which the behaviour is normal.
        method: as for :func:`edge_scores`; ``acdc`` goes through the receivers from last to first and patches an edge
            for good where that raises the divergence from the model's output by less than ``threshold``.
        level: ``nodes`` patches all edges out of a head or MLP together. For first-order methods a node's weight is
            the sum over its edges, which is its own attribution.
        donors: trusted donors, or how many to draw from the inputs. For ``acdc`` every input has one of them.
        target: the scalar, by default the margin of the model's own answer. ``acdc`` goes by divergence alone.
        steps: points of ``eap-ig``.
        threshold: nats, for ``acdc``.
        seed: for the draw.

    Raises:
        HypothesisError: when ``method``, ``level`` or ``steps`` is none of these.

    References:
        Conmy et al. 2023, arXiv 2304.14997 (ACDC); Syed et al. 2023, arXiv 2310.10348 (EAP); Hanna et al. 2024, arXiv
        2403.17806 (EAP-IG).
    """
    if level not in ("edges", "nodes"):
        raise HypothesisError(f"level={level!r}", tries=["'edges'", "'nodes'"])
    if method == "acdc":
        patcher, known = _prepared(model, trusted, donors, seed)
        return _acdc(patcher, known, level, threshold)
    if method == "exact" and level == "nodes":
        patcher, known = _prepared(model, trusted, donors, seed)
        weights = _exact_nodes(patcher, known, as_target(target or TopMargin()))
        return Circuit.of_nodes(patcher.computation, weights, method)
    scores = edge_scores(model, trusted, method, donors=donors, target=target, steps=steps, seed=seed)
    table = scores.table()
    if level == "nodes":
        return Circuit.of_nodes(scores.computation, table.sum(1), method)
    return Circuit.of_edges(scores.computation, table, method=method)


def _prepared(model: Any, inputs: Any, donors: Donors | int, seed: int) -> tuple[EdgePatcher, Inputs]:
    opened = model if isinstance(model, OpenModel) else open_model(model)
    known = opened.inputs(inputs)
    return EdgePatcher.of(opened, donors if isinstance(donors, Donors) else Donors.draw(known, donors, seed)), known


def _exact(patcher: EdgePatcher, target: Target, batch: Batch, which: Tensor) -> Tensor:
    """(batch, edges) mean over donors of the target's change, one edge at a time."""
    edges = patcher.computation.allowed.nonzero()
    return _changes(patcher, target, batch, which, [edges[i : i + 1] for i in range(len(edges))])


def _exact_nodes(patcher: EdgePatcher, inputs: Inputs, target: Target) -> Tensor:
    """(senders,) mean over inputs and donors of the target's change, all edges out of a sender at a time."""
    allowed = patcher.computation.allowed
    groups = [(allowed & (torch.arange(len(allowed)) == row)[:, None]).nonzero() for row in range(len(allowed))]
    which, total = torch.as_tensor(patcher.donors.of(inputs)), torch.zeros(len(allowed))
    for batch in patcher.batches(inputs):
        total += _changes(patcher, target, batch, which[torch.as_tensor(batch.rows)], groups).sum(0)
    return total / len(inputs)


def _changes(patcher: EdgePatcher, target: Target, batch: Batch, which: Tensor, groups: list[Tensor]) -> Tensor:
    """(batch, groups) mean over donors of the target's change when a group of edges is patched."""
    start = patcher.start(batch)
    clean = start.logits
    read = target.bind(clean)
    shape = patcher.computation.allowed.shape
    # Those that depart from the clean run at the same receiver together.
    order = sorted(range(len(groups)), key=lambda i: int(groups[i][:, 1].min()) if len(groups[i]) else shape[1])

    def tables() -> Any:
        for i in order:
            table = torch.zeros(shape, dtype=torch.int8)
            table[groups[i][:, 0], groups[i][:, 1]] = DONOR
            yield table

    total = torch.zeros(len(batch), len(groups))
    for donor in which.unbind(1):
        for column, logits in zip(order, patcher.stacked(start, donor, tables()), strict=True):
            total[:, column] += (read(logits) - read(clean)).cpu()
    return total / which.shape[1]


def _acdc(patcher: EdgePatcher, inputs: Inputs, level: str, threshold: float) -> Circuit:
    """Edges that are patched stay patched; the weight of one that is kept is the rise of the divergence without it."""
    graph = patcher.computation
    loss = _Loss.of(patcher, inputs)
    sources = torch.zeros(graph.allowed.shape, dtype=torch.int8)
    weights = torch.zeros(graph.allowed.shape)
    now = 0.0
    for group in _candidates(graph, level):
        changed = sources.clone()
        changed[group[:, 0], group[:, 1]] = DONOR
        rise = 0.0 if _idle(graph, sources, group) else loss(changed) - now
        if rise < threshold:
            sources, now = changed, now + rise
        else:
            weights[group[:, 0], group[:, 1]] = rise
    kept = graph.allowed & (sources == CURRENT)
    if level == "nodes":
        whole = Circuit.of_nodes(graph, weights.amax(1), "acdc")
        dead = {name for name, row in zip(graph.senders, kept, strict=True) if not row.any() and name != "input"}
        names = [name for name in whole.graph if name not in dead]
        return Circuit(nx.freeze(nx.DiGraph(whole.graph.subgraph(names))), "nodes", whole.total, "acdc")
    return Circuit.of_edges(graph, weights, kept, "acdc")


def _candidates(graph: Computation, level: str) -> list[Tensor]:
    """Groups of edges in the order in which they are tried: from the last receiver (or sender) to the first."""
    edges = graph.allowed.nonzero()
    if level == "nodes":
        return [edges[edges[:, 0] == row] for row in reversed(range(1, len(graph.senders)))]
    order = sorted(range(len(edges)), key=lambda i: (-int(edges[i, 1]), -int(edges[i, 0])))
    return [edges[i : i + 1] for i in order]


def _idle(graph: Computation, sources: Tensor, group: Tensor) -> bool:
    """Whether nobody reads any more what the receivers of these edges become: patching them then changes nothing."""
    for column in group[:, 1].tolist():
        rows = [graph.sender(node) for node in graph.heads_of(graph.receivers[column])]
        if not rows or bool((graph.allowed[rows] & (sources[rows] == CURRENT)).any()):
            return False
    return True


@dataclass(frozen=True, eq=False)
class _Loss:
    """The mean divergence from the model's output, in nats, every input having one donor."""

    patcher: EdgePatcher
    batches: tuple[tuple[Batch | Clean, Tensor, Tensor], ...]

    @classmethod
    def of(cls, patcher: EdgePatcher, inputs: Inputs) -> _Loss:
        table = torch.as_tensor(patcher.donors.of(inputs))
        which = table[torch.arange(len(inputs)), torch.arange(len(inputs)) % table.shape[1]]
        found, held = [], 0
        for batch in patcher.batches(inputs):
            start = patcher.start(batch)
            clean = log_softmax(start.logits.double(), -1)
            # Clean runs are held as long as there is room, since every edge asks for them again.
            held += start.numbers
            found.append((start if held <= _HELD else batch, which[torch.as_tensor(batch.rows)], clean))
        return cls(patcher, tuple(found))

    def __call__(self, sources: Tensor) -> float:
        total, count = 0.0, 0
        for batch, which, clean in self.batches:
            logits = self.patcher.logits(batch, which, sources).double()
            total += float(divergence(clean, log_softmax(logits, -1)).sum())
            count += len(clean)
        return total / count
