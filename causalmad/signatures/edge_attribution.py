"""Edge attribution: which edges of the computation carry an output, to first order, all at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.hypotheses import Donors
from causalmad.hypotheses.edge_attribution import EdgeAttributor
from causalmad.hypotheses.edges import EdgePatcher
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.signatures.base import Column, Signatures, State, require_inputs
from causalmad.signatures.columns import Reduced
from causalmad.signatures.floors import with_floors
from causalmad.signatures.scaled import Scales, sample
from causalmad.targets import Divergence, Readout, Target, TopMargin, as_target

_SUMMARY = ("share outside", "largest z outside", "largest z inside", "entropy", "total")
_FLOOR = 1e-2  # of the mean size: a smaller standard deviation is rounding, and would make any edge the loudest


@dataclass(frozen=True)
class EdgeAttribution:
    """Which edges of the computation carry the output, to first order and input by input (EAP, EAP-IG).

    The score of an edge from a head or MLP (or the input) to a head's queries, keys or values, an MLP or the logits is
    about how much the target changes when the edge carries a trusted donor's value: the donor's minus the clean value
    of the sender, times the target's gradient with respect to what the receiver reads, summed over positions and
    averaged over the donors. All edges cost one backward pass together (times donors and steps for more than one step).

    Args:
        steps: 1 takes the gradient at the clean input (EAP); more average it over points between the donor's and the
            clean residual stream before the first block (EAP-IG).
        support: share of the trusted absolute scores that the trusted support carries: the fewest edges that do.
        most: the largest edges of the support have a column each, at most this many; by default 64, and never more than
            a quarter of the trusted inputs, since a distance in d dimensions needs several times d inputs to fit.
        donors: how many trusted donors, the same for all inputs; an input that is itself a donor uses a spare.
        target: the scalar that is attributed, by default the margin of the model's own answer.

    Columns are the scores of these edges (in units of the target); the share of absolute score outside the support; the
    largest |z| of an edge outside the support and of one inside, z by its trusted mean and standard deviation; the
    entropy (nats) of the shares of absolute score; and their total. All are signed logarithms, log(1 + |x| / s) with s
    the trusted median size (for edges at least a tenth of the largest such size).

    References:
        EAP: Syed, Rager and Conmy 2023, arXiv 2310.10348. EAP-IG: Hanna, Pezzelle and Belinkov 2024, arXiv 2403.17806.
    """

    steps: int = 1
    support: float = 0.95
    most: int | None = None
    donors: int = 4
    target: Target | Readout = field(default_factory=TopMargin)

    def __post_init__(self) -> None:
        require_options(self)
        if self.steps < 1 or self.donors < 1 or (self.most is not None and self.most < 1):
            raise FitError(f"steps={self.steps}, donors={self.donors}, most={self.most}", needed="at least 1 of each")
        if not 0 < self.support < 1:
            raise FitError(f"support={self.support}", needed="a share in (0, 1)")
        if isinstance(self.target, Divergence) and self.steps == 1:
            raise FitError(
                "the divergence from the clean output has no slope at the clean input, so one step sees nothing",
                tries=["steps=5", "target=TopMargin()"],
            )

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedEdgeAttribution:
        """Draw the donors, and find the support and the columns' units on some of the trusted inputs.

        Raises:
            HypothesisError: for a model whose edges are not known, and inputs that are no tokens.
            FitError: when the trusted inputs are too few.
        """
        require_inputs(trusted)
        patcher = EdgePatcher.of(model, Donors.draw(trusted, self.donors, seed))
        some = sample(trusted, seed, patcher.donors.inputs.digests)
        usual = Usual.of(batch for _, batch in _scores(_attributor(self, model, patcher), some))
        order, inside = _support(usual.size, self.support)
        kept = order[: min(inside, self.most or min(64, max(len(trusted) // 4, 1)))]
        raw = FittedEdgeAttribution(self, model, patcher, usual, order[:inside], kept, Scales.unknown())
        return replace(raw, scales=with_floors(Scales.of(raw.reduced(some)), _kind))

    def restore(self, model: OpenModel, state: State) -> FittedEdgeAttribution:
        """The fitted signature that wrote ``state``."""
        fields = {key.removeprefix("donors:"): v for key, v in state.tensors.items() if key.startswith("donors:")}
        patcher = EdgePatcher.of(model, Donors.unpack(fields, state.data["donors"]))
        usual = Usual(*(state.tensors[name] for name in ("size", "mean", "sd")))
        inside, kept = state.tensors["inside"], state.tensors["kept"]
        return FittedEdgeAttribution(self, model, patcher, usual, inside, kept, Scales.restore(state))


@dataclass(frozen=True, eq=False)
class Usual:
    """What the scores of the edges are on trusted inputs.

    Attributes:
        size: (edges,) mean absolute score.
        mean: (edges,) mean score.
        sd: (edges,) standard deviation of the score.
    """

    size: Tensor
    mean: Tensor
    sd: Tensor

    @classmethod
    def of(cls, batches: Iterator[Tensor]) -> Usual:
        """From scores (batch, edges) batch by batch, none of which is kept: there may be millions of edges."""
        count, size, total, square = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
        for scores in batches:
            count += len(scores)
            size, total, square = size + scores.abs().sum(0), total + scores.sum(0), square + (scores**2).sum(0)
        mean = total / count
        return cls(size / count, mean, (square / count - mean**2).clamp(min=0).sqrt())

    def z(self, scores: Tensor) -> Tensor:
        """(batch, edges) distances from the mean in standard deviations."""
        floor = float(_FLOOR * self.size.mean())
        return (scores - self.mean) / self.sd.clamp(min=floor if floor > 0 else 1.0)


@dataclass(frozen=True, eq=False)
class FittedEdgeAttribution:
    """Edge attribution on one model with its donors.

    Attributes:
        spec: what was fitted.
        model: the opened model.
        patcher: its edges, and the donors.
        usual: the edges' scores on trusted inputs.
        inside: the edges of the support, as places among all edges.
        kept: those with a column of their own.
        scales: the columns and their units.
    """

    spec: EdgeAttribution
    model: OpenModel
    patcher: EdgePatcher
    usual: Usual
    inside: Tensor
    kept: Tensor
    scales: Scales

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the numbers are."""
        return self.scales.columns

    @property
    def donor_digests(self) -> tuple[str, ...]:
        """Contents of the donors, which the reference leaves out."""
        return self.patcher.donors.inputs.digests

    @cached_property
    def attributor(self) -> EdgeAttributor:
        """What scores the edges."""
        return _attributor(self.spec, self.model, self.patcher)

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) signatures; one forward and one backward pass, times donors and steps for more than one step."""
        return self.scales.apply(self.model.inputs(inputs), self.reduced)

    def state(self) -> State:
        """The donors, the trusted scores, the support, and the columns with their units."""
        fields, donors = self.patcher.donors.pack()
        tensors = {f"donors:{key}": value for key, value in fields.items()}
        tensors |= {"size": self.usual.size, "mean": self.usual.mean, "sd": self.usual.sd}
        tensors |= {"inside": self.inside, "kept": self.kept}
        return self.scales.save(State(tensors, {"donors": donors}))

    def reduced(self, inputs: Inputs) -> Reduced:
        """The columns in their own units: the target's, shares, standard deviations and nats."""
        columns = self.columns or self._named()
        values = np.empty((len(inputs), len(columns)))
        for rows, scores in _scores(self.attributor, inputs):
            values[rows] = torch.cat([scores[:, self.kept], self._summary(scores)], 1).numpy()
        return Reduced(columns, values)

    def _named(self) -> tuple[Column, ...]:
        """What the numbers are, before their units are known."""
        graph = self.patcher.computation
        columns = []
        for edge in self.kept.tolist():
            sender, receiver = graph.edges[edge]
            name = f"{sender}->{receiver}"
            columns.append(Column(f"edge {name}", str(graph.site(sender)), name, block="edges"))
        return (*columns, *(Column(f"edges {name}", unit=name, block="edges as a whole") for name in _SUMMARY))

    def _summary(self, scores: Tensor) -> Tensor:
        """(batch, 5) what the scores (batch, edges) are as a whole."""
        outside = torch.ones(scores.shape[1], dtype=torch.bool)
        outside[self.inside] = False
        size, z = scores.abs(), self.usual.z(scores).abs()
        total = size.sum(1)
        share = size / total.clamp(min=torch.finfo(size.dtype).tiny)[:, None]
        largest = [z.masked_fill(~part, 0).amax(1) for part in (outside, ~outside)]
        return torch.stack([share[:, outside].sum(1), *largest, torch.special.entr(share).sum(1), total], 1)


def _kind(column: Column) -> str:
    return column.block if column.block == "edges" else column.name


def _attributor(spec: EdgeAttribution, model: OpenModel, patcher: EdgePatcher) -> EdgeAttributor:
    graph = replace(patcher.computation, model=model)  # the model may stand under edits, which its donors do not
    method = "eap" if spec.steps == 1 else "eap-ig"
    return EdgeAttributor(replace(patcher, computation=graph), as_target(spec.target), method, spec.steps)


def _scores(attributor: EdgeAttributor, inputs: Inputs) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
    """Rows, and their (batch, edges) scores averaged over donors, in double precision."""
    patcher = attributor.patcher
    which = torch.as_tensor(patcher.donors.of(inputs))
    with patcher.model.quiet():
        for batch in patcher.batches(inputs):
            scores = attributor.scores(batch, which[torch.as_tensor(batch.rows)])
            yield batch.rows, scores.cpu()[:, patcher.computation.allowed].double()


def _support(size: Tensor, share: float) -> tuple[Tensor, int]:
    """All edges, the largest first, and how many of them are the fewest that carry a share of the absolute score."""
    order = torch.argsort(size, descending=True, stable=True)
    carried = size[order].cumsum(0)
    return order, min(int((carried < share * carried[-1]).sum()) + 1, len(order))
