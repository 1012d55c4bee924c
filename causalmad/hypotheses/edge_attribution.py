"""Edge attribution patching: the first-order effect of every edge at once, from gradients at the receivers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor, nn

from causalmad.hypotheses.computation import Computation, Part, plain, weights
from causalmad.hypotheses.donors import averager
from causalmad.hypotheses.edges import EdgePatcher
from causalmad.inputs import Batch
from causalmad.models.base import Run
from causalmad.models.last_position import LastPosition
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

    @cached_property
    def runs(self) -> LastPosition:
        """Runs of the model for the gradients alone."""
        return LastPosition(self.patcher.model)

    def scores(self, batch: Batch, which: Tensor) -> Tensor:
        """(batch, senders, receivers) scores in units of the target, averaged over donors; zero where no edge is.

        Args:
            batch: the inputs.
            which: (batch, donors) the donors of every input.
        """
        model = self.patcher.model
        with torch.inference_mode(False), torch.no_grad(), model.quiet():
            clean = self._run(batch, self.target)
            if clean.logits is None:
                raise RuntimeError("a run with a target has logits")
            if self.method == "eap":
                # The gradient is the same for all donors, and the score is linear in their mean.
                return self._products(clean, self._apart(batch, which, clean.values))
            asked = bound(self.target, clean.logits)
            parts = [
                self._integrated(batch, asked, clean.values, donor, self._apart(batch, donor[:, None], clean.values))
                for donor in which.unbind(1)
            ]
            return torch.stack(parts).mean(0)

    def _apart(self, batch: Batch, which: Tensor, clean: Mapping[Place, Tensor]) -> Tensor:
        """(senders, batch, positions, width) the donors' mean values minus the clean ones, zero at padding."""
        graph = self.patcher.computation
        found, mean = None, averager(self.patcher.donor_batch.mask, which, batch)
        # What is written is linear in the activation where it is written: the donors are averaged there.
        for part in (None, *(part for part in graph.parts if part.writes is not None)):
            place = graph.source if part is None or part.writes is None else part.writes
            gap = _real(mean(self.patcher.values[place]) - clean[place], batch)
            if found is None:
                found = gap.new_empty(len(graph.senders), *gap.shape)
            if part is None or not part.slots:
                found[0 if part is None else part.senders.start] = gap
            else:
                heads = gap.flatten(0, 1).unflatten(-1, (len(part.senders), -1)).transpose(0, 1)
                projection = graph.model.module.get_submodule(place.path)
                matrix = weights(projection, clean[place]).to(gap.dtype).unflatten(0, (len(part.senders), -1))
                torch.bmm(heads, matrix, out=found[part.senders.start : part.senders.stop].flatten(1, 2))
        if found is None:
            raise RuntimeError("a computation has an input")
        return found

    def _integrated(
        self, batch: Batch, asked: Target, clean: Mapping[Place, Tensor], donor: Tensor, gap: Tensor
    ) -> Tensor:
        """Scores against one donor, averaged over the points in between."""
        graph = self.patcher.computation
        rows = {graph.source: range(1)}
        if self.method == "eap-ig-activations":
            rows |= {part.writes: part.senders for part in graph.parts if part.writes is not None}
        total = gap.new_zeros(len(batch), *graph.allowed.shape)
        for place, senders in rows.items():
            inside = slice(None) if self.method == "eap-ig" else slice(senders.start, senders.stop)
            way = _real(self.patcher.aligned(batch, donor, place) - clean[place], batch)
            for step in range(1, self.steps + 1):
                point = clean[place] + (1 - step / self.steps) * way
                found = self._products(self._run(batch, asked, {place: _constant(point)}), gap)
                total[:, inside] += found[:, inside] / self.steps
        return total

    def _run(self, batch: Batch, target: Target, edits: Mapping[Place, Patch] | None = None) -> Run:
        """A run with everything read that scores need; each receiver's gradient is that of its own reading."""
        graph = self.patcher.computation
        slots = dict.fromkeys(slot.place for part in graph.parts for slot in part.slots)
        sloped = (*slots, *(part.norm for part in graph.parts if not part.slots))
        read = (*graph.places, *slots, *(part.norm for part in graph.parts))
        return self.runs.run(batch, read=read, sloped=sloped, edits=edits, target=target)

    def _products(self, run: Run, gap: Tensor) -> Tensor:
        """(batch, senders, receivers) gaps times gradients, one part's receivers at a time."""
        graph = self.patcher.computation
        found = gap.new_zeros(gap.shape[1], *graph.allowed.shape)
        for part in graph.parts:
            slopes = _slopes(graph, part, run).to(gap.dtype)
            # Behind the last attention only the last position has a slope.
            first = 0 if part.slots or bool(slopes[:, :, :-1].any()) else slopes.shape[2] - 1
            moved = gap[: part.upstream, :, first:].flatten(2).transpose(0, 1)
            scores = torch.bmm(moved, slopes[:, :, first:].flatten(2).permute(1, 2, 0))
            found[:, : part.upstream, part.receivers.start : part.receivers.stop] = scores
        return found


def _slopes(graph: Computation, part: Part, run: Run) -> Tensor:
    """(receivers, batch, positions, width) gradient with respect to what each receiver of a part reads."""
    if not part.slots:
        return run.grads[part.norm][None]
    stream, module = run.values[part.norm], graph.model.module
    matrices = {
        place: weights(module.get_submodule(place.path), stream)
        for place in dict.fromkeys(slot.place for slot in part.slots)
    }
    blocks = torch.stack([matrices[slot.place][:, slot.start : slot.stop].T for slot in part.slots])
    own = torch.stack([run.grads[slot.place][..., slot.start : slot.stop] for slot in part.slots])
    columns = torch.bmm(own.flatten(1, 2), blocks).unflatten(1, own.shape[1:3])
    return before(module.get_submodule(part.norm.path), stream, columns, alone=columns.is_cpu)


def before(norm: nn.Module, stream: Tensor, slopes: Tensor, *, alone: bool) -> Tensor:
    """(receivers, batch, positions, width) gradients with respect to what a norm reads; ``slopes`` may be overwritten.

    Args:
        norm: reads each position by itself.
        stream: (batch, positions, width) what it reads.
        slopes: (receivers, batch, positions, width) gradients with respect to what it gives.
        alone: whether receivers are worked on one after the other. On a CPU this is faster: each stays near the
            processor, and the norm has a step of its own for it. Elsewhere every step would be launched anew.
    """
    with torch.enable_grad():
        leaf = stream.detach().requires_grad_(True)
        normed = plain(norm, leaf)
        if alone:
            found = slopes if slopes.dtype == stream.dtype else torch.empty_like(slopes, dtype=stream.dtype)
            for own, slope in zip(found, slopes, strict=True):
                own.copy_(torch.autograd.grad(normed, leaf, slope, retain_graph=True)[0])
            return found
        try:
            (found,) = torch.autograd.grad(normed, leaf, slopes, is_grads_batched=True)
        except (RuntimeError, NotImplementedError):
            # A norm of somebody's own may know no batches of gradients: one backward pass serves all side by side.
            leaf = stream.detach().expand_as(slopes).clone().requires_grad_(True)
            (found,) = torch.autograd.grad(plain(norm, leaf), leaf, slopes)
    return found


def _real(value: Tensor, batch: Batch) -> Tensor:
    """(batch, positions, width) values, zero at padding."""
    return value if batch.mask is None or batch.full else value.masked_fill(~batch.mask[:, :, None], 0)


def _constant(value: Tensor) -> Patch:
    return lambda _: value
