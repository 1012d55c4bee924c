"""Edge attribution patching: the first-order effect of every edge at once, from gradients at the receivers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from causalmad.hypotheses.computation import Computation, Part, plain, weights
from causalmad.hypotheses.edges import EdgePatcher
from causalmad.inputs import Batch
from causalmad.models.base import Run
from causalmad.sites import Place
from causalmad.targets import Target, bound

Patch: TypeAlias = Callable[[Tensor], Tensor]

METHODS = ("eap", "eap-ig", "eap-ig-activations")


@dataclass(frozen=True, eq=False)
class EdgeAttributor:
    """Scores edges of one model: about how much the target changes when an edge carries the donor's value.

    An edge's score is the donor's minus the clean value of its sender, times the target's gradient with respect to what
    its receiver reads, summed over positions.

    Attributes:
        patcher: the model and its donors.
        target: the scalar whose change is estimated, bound to the clean run.
        method: at which inputs the gradient is taken. ``eap``: the clean ones. ``eap-ig``: averaged over ``steps``
            points donor + k/m (clean - donor) of the residual stream before the first block, k = 1..m.
            ``eap-ig-activations``: the same, but with the values of one attention or MLP at a time between donor and
            clean, for the edges out of it.
        steps: m; with one step both are ``eap``.

    References:
        Syed, Rager, Conmy 2023, arXiv 2310.10348 (EAP); Hanna, Pezzelle, Belinkov 2024, arXiv 2403.17806 (EAP-IG).
    """

    patcher: EdgePatcher
    target: Target
    method: str = "eap-ig"
    steps: int = 5

    def scores(self, batch: Batch, which: Tensor) -> Tensor:
        """(batch, senders, receivers) scores in units of the target, averaged over donors; zero where no edge is.

        Args:
            batch: the inputs.
            which: (batch, donors) the donors of every input.
        """
        model = self.patcher.model
        with torch.inference_mode(False), model.quiet():
            clean = self._run(batch, self.target)
            if clean.logits is None:
                raise RuntimeError("a run with a target has logits")
            written = self.patcher.computation.senders_of(clean.values)
            graph, donors = self.patcher.computation, which.unbind(1)
            if self.method == "eap":
                # The gradient is the same for all donors, and the score is linear in their mean.
                gap = torch.zeros_like(written)
                for donor in donors:
                    gap += self._apart(batch, donor, written) / len(donors)
                return self._products(clean, gap)
            asked = bound(self.target, clean.logits)
            total = torch.zeros(len(batch), *graph.allowed.shape, device=written.device)
            for donor in donors:
                gap = self._apart(batch, donor, written)
                total += self._integrated(batch, asked, clean.values, donor, gap) / len(donors)
            return total

    def _apart(self, batch: Batch, donor: Tensor, written: Tensor) -> Tensor:
        """(batch, positions, senders, width) the donor's values minus the clean ones, zero at padding."""
        gap = self.patcher.aligned(batch, donor) - written
        return gap if batch.mask is None else gap.masked_fill(~batch.mask[:, :, None, None], 0)

    def _integrated(
        self, batch: Batch, asked: Target, clean: Mapping[Place, Tensor], donor: Tensor, gap: Tensor
    ) -> Tensor:
        """Scores against one donor, averaged over the points in between."""
        graph = self.patcher.computation
        rows = {graph.source: range(1)}
        if self.method == "eap-ig-activations":
            rows |= {part.writes: part.senders for part in graph.parts if part.writes is not None}
        total = torch.zeros(len(batch), *graph.allowed.shape, device=gap.device)
        for place, senders in rows.items():
            inside = slice(None) if self.method == "eap-ig" else slice(senders.start, senders.stop)
            way = self.patcher.aligned(batch, donor, place) - clean[place]
            if batch.mask is not None:
                way = way.masked_fill(~batch.mask[:, :, None], 0)
            for step in range(1, self.steps + 1):
                point = clean[place] + (1 - step / self.steps) * way
                found = self._products(self._run(batch, asked, {place: _constant(point)}), gap)
                total[:, inside] += found[:, inside] / self.steps
        return total

    def _run(self, batch: Batch, target: Target, edits: Mapping[Place, Patch] | None = None) -> Run:
        """A run with everything read that scores need; each receiver's gradient is that of its own reading."""
        graph = self.patcher.computation
        slots = {slot.place: None for part in graph.parts for slot in part.slots}
        changes = {part.norm: Tensor.clone for part in graph.parts if not part.slots}
        read = (*graph.places, *slots, *(part.norm for part in graph.parts))
        return self.patcher.model.run(batch, read=read, edits={**changes, **(edits or {})}, target=target)

    def _products(self, run: Run, gap: Tensor) -> Tensor:
        """(batch, senders, receivers) gaps times gradients, one part's receivers at a time."""
        graph = self.patcher.computation
        found = torch.zeros(len(gap), *graph.allowed.shape, device=gap.device)
        moved = gap.transpose(1, 2).flatten(2)  # copied once, and not for every part
        for part in graph.parts:
            slopes = _slopes(graph, part, run).to(gap.dtype).transpose(1, 2).flatten(2)
            scores = moved[:, : part.upstream] @ slopes.mT
            found[:, : part.upstream, part.receivers.start : part.receivers.stop] = scores
        return found


def _slopes(graph: Computation, part: Part, run: Run) -> Tensor:
    """(batch, positions, receivers, width) gradient with respect to what each receiver of a part reads."""
    if not part.slots:
        return run.grads[part.norm][:, :, None]
    stream, module = run.values[part.norm], graph.model.module
    columns = []
    for slot in part.slots:
        matrix = weights(module.get_submodule(slot.place.path), stream)[:, slot.start : slot.stop]
        columns.append(run.grads[slot.place][..., slot.start : slot.stop] @ matrix.T)
    # The norm reads each position by itself, so that one backward pass serves all receivers side by side.
    with torch.enable_grad():
        wide = stream[:, :, None].expand(-1, -1, len(columns), -1).detach().clone().requires_grad_(True)
        normed = plain(module.get_submodule(part.norm.path), wide)
        (slopes,) = torch.autograd.grad(normed, wide, torch.stack(columns, 2))
    return slopes


def _constant(value: Tensor) -> Patch:
    return lambda _: value
