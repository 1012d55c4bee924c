"""Faithfulness of a circuit: how much of the model's behaviour is left when everything else is a donor's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.integrate import trapezoid
from torch import Tensor

from causalmad.errors import HypothesisError
from causalmad.hypotheses.circuit import Circuit
from causalmad.hypotheses.donors import Donors
from causalmad.hypotheses.edges import EdgePatcher, sources_of
from causalmad.inputs import Inputs
from causalmad.models import OpenModel, open_model
from causalmad.targets import Readout, Target, TopMargin, as_target

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Faithfulness:
    """A curve of faithfulness over the share that is kept.

    Attributes:
        shares: the shares of all edges (or nodes), rising.
        sizes: how many are kept, dead ends taken away.
        values: (m(circuit) - m(nothing)) / (m(model) - m(nothing)), m the mean target over inputs and donors: 1 where
            the circuit does what the model does, 0 where it does no more than nothing at all.
        model: m(model), in units of the target.
        nothing: m(nothing), everything being the donor's.
    """

    shares: tuple[float, ...]
    sizes: tuple[int, ...]
    values: tuple[float, ...]
    model: float
    nothing: float

    @property
    def cpr(self) -> float:
        """Circuit performance ratio: the area under the curve (trapezia over the shares); higher is better."""
        return float(trapezoid(self.values, self.shares))

    @property
    def cmd(self) -> float:
        """Circuit-model distance: the area between the curve and 1; 0 is best."""
        return float(trapezoid(np.abs(1 - np.array(self.values)), self.shares))


def faithfulness(
    model: Any,
    circuit: Circuit,
    inputs: Inputs,
    shares: Sequence[float] = SHARES,
    *,
    donors: Donors | int = 4,
    target: Target | Readout | None = None,
    seed: int = 0,
) -> Faithfulness:
    """The faithfulness of a circuit, pruned at several shares.

    Args:
        model: any model that :func:`causalmad.open_model` takes.
        circuit: weighted edges or nodes. A circuit that has fewer than a share asks for stays as it is.
        inputs: on which it is tested.
        shares: of all edges (or nodes) of the model.
        donors: trusted donors, or how many to draw from the inputs.
        target: the metric, by default the margin of the model's own answer.
        seed: for the draw.

    Raises:
        HypothesisError: when the model on donors does as well as on its own input, so that there is nothing to keep.

    References:
        Mueller et al. 2025, "MIB: A Mechanistic Interpretability Benchmark", arXiv 2504.13151.
    """
    opened = model if isinstance(model, OpenModel) else open_model(model)
    known = opened.inputs(inputs)
    patcher = EdgePatcher.of(opened, donors if isinstance(donors, Donors) else Donors.draw(known, donors, seed))
    ordered = tuple(sorted(shares))
    pruned = [circuit.prune(share) for share in ordered]
    graph = patcher.computation
    nothing = torch.zeros_like(graph.allowed)
    tables = [sources_of(graph, kept) for kept in (~nothing, nothing, *(one.kept(graph) for one in pruned))]
    means = mean_targets(patcher, known, tables, as_target(target or TopMargin()))
    whole, least, *rest = means.tolist()
    if abs(whole - least) < 1e-9:
        raise HypothesisError(
            f"the target is {whole:.3g} on the model and with every edge patched: there is nothing to keep",
            causes=["a constant target", "inputs that are all the same"],
            tries=["another target", "more inputs"],
        )
    values = tuple((mean - least) / (whole - least) for mean in rest)
    return Faithfulness(ordered, tuple(len(one) for one in pruned), values, whole, least)


def mean_targets(patcher: EdgePatcher, inputs: Inputs, tables: Sequence[Tensor], target: Target) -> Tensor:
    """(tables,) mean over inputs and their donors of the target under each table of sources."""
    which = torch.as_tensor(patcher.donors.of(inputs))
    total = torch.zeros(len(tables), dtype=torch.float64)
    with patcher.model.quiet():
        for batch in patcher.batches(inputs):
            start = patcher.start(batch)
            read = target.bind(start.logits)
            for donor in which[torch.as_tensor(batch.rows)].unbind(1):
                for row, logits in enumerate(patcher.stacked(start, donor, tables)):
                    total[row] += float(read(logits).double().sum())
    return total / which.numel()


def run_circuit(model: Any, circuit: Circuit, inputs: Any, donors: Donors) -> Tensor:
    """(n, donors, classes) logits when everything outside a circuit is the donor's.

    Args:
        model: any model that :func:`causalmad.open_model` takes.
        circuit: what keeps the input's own values.
        inputs: the inputs.
        donors: trusted donors; every input is run with each of its own.
    """
    patcher = EdgePatcher.of(model, donors)
    known = patcher.model.inputs(inputs)
    which = torch.as_tensor(donors.of(known))
    sources = sources_of(patcher.computation, circuit.kept(patcher.computation))
    found: dict[int, Tensor] = {}
    with patcher.model.quiet():
        for batch in patcher.batches(known):
            chosen = which[torch.as_tensor(batch.rows)]
            logits = torch.stack([patcher.logits(batch, donor, sources) for donor in chosen.unbind(1)], 1)
            found |= dict(zip(batch.rows.tolist(), logits, strict=True))
    return torch.stack([found[row] for row in range(len(known))])
