"""Exact edge patching: one run in which every receiver reads each of its senders from where it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from causalmad.errors import HypothesisError
from causalmad.hypotheses.bench import Bench
from causalmad.hypotheses.computation import Computation, Part, plain, weights
from causalmad.hypotheses.donors import Donors, align
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel, open_model
from causalmad.models.batching import in_stacks
from causalmad.sites import Place

Patch: TypeAlias = Callable[[Tensor], Tensor]

# What a receiver reads of a sender: its value in the same run, in the donor's run, or in the clean run.
CURRENT, DONOR, CLEAN = 0, 1, 2

_MOST = 2**25  # numbers held at once for what all senders write; more rows than that are run in turn


@dataclass(frozen=True, eq=False)
class EdgePatcher:
    """Patches the edges of one model with the values of trusted donors.

    Attributes:
        computation: the model as a graph.
        donors: the trusted inputs whose values are put in.
        donor_batch: the donors as one batch.
        values: place -> the donors' activations where senders are.
        written: (donors, positions, senders, width) what every sender writes on the donors.
    """

    computation: Computation
    donors: Donors
    donor_batch: Batch
    values: Mapping[Place, Tensor]
    written: Tensor

    @classmethod
    def of(cls, model: Any, donors: Donors) -> EdgePatcher:
        """Ready to run: the donors' values are computed once.

        Raises:
            HypothesisError: for a model whose edges are not known, inputs that are no tokens, and donors of several
                lengths where the model takes no attention mask.
        """
        opened = model if isinstance(model, OpenModel) else open_model(model)
        computation = Computation.of(opened)
        if not donors.inputs.tokens:
            raise HypothesisError("edges of inputs that are no token sequences", needed="token inputs")
        batch = Bench.of(opened, donors.inputs).pool
        with _plain_tensors(), opened.quiet():
            unedited = replace(computation, model=opened.plain)
            values = in_stacks(opened, batch, lambda part: unedited.capture(part, check=True))
            return cls(computation, donors, batch, values, computation.senders_of(values))

    @property
    def model(self) -> OpenModel:
        """The opened model."""
        return self.computation.model

    def batches(self, inputs: Inputs) -> Iterator[Batch]:
        """Batches small enough for what all senders write to be held at once, a few times over."""
        width = self.written.shape[2] * self.written.shape[3] * max(int(inputs.lengths.max()), 1)
        return self.model.batches(inputs, size=max(1, min(self.model.batch_size, 2 * _MOST // width)))

    def aligned(self, batch: Batch, which: Tensor, place: Place | None = None) -> Tensor:
        """(batch, positions, senders, width) the donors' values, aligned at the last real token.

        Args:
            batch: the inputs.
            which: (batch,) donor of each row.
            place: one of the computation's places, for the donors' activation there instead.
        """
        known = self.written if place is None else self.values[place]
        return align(known, self.donor_batch.mask, which.to(known.device), batch)

    def logits(self, batch: Batch, which: Tensor, sources: Tensor) -> Tensor:
        """(batch, classes) logits when every receiver reads as it is told.

        Args:
            batch: the inputs.
            which: (batch,) donor of each row.
            sources: (batch, senders, receivers) or (senders, receivers), ``CURRENT``, ``DONOR`` or ``CLEAN``.
        """
        table = sources.expand(len(batch), *sources.shape[-2:])
        width = self.written.shape[2] * self.written.shape[3] * batch.main.shape[1]
        rows = torch.arange(len(batch)).split(max(1, _MOST // width))
        with _plain_tensors(), self.model.quiet():
            return torch.cat([self._logits(pick(batch, part), which[part], table[part]) for part in rows])

    def stacked(self, batch: Batch, which: Tensor, variants: Iterable[Tensor]) -> Iterator[Tensor]:
        """(batch, classes) logits of every variant in turn, many of them in one run.

        Args:
            batch: the inputs.
            which: (batch,) donor of each row.
            variants: each (senders, receivers) sources, the same for all rows.
        """
        limit = max(1, self.model.batching.stack // len(batch))
        waiting: list[Tensor] = []

        def run() -> Iterator[Tensor]:
            rows = torch.arange(len(batch)).repeat(len(waiting))
            table = torch.stack(waiting).repeat_interleave(len(batch), 0)
            found = self.logits(pick(batch, rows), which[rows], table)
            yield from found.split(len(batch))

        for sources in variants:
            waiting.append(sources)
            if len(waiting) == limit:
                yield from run()
                waiting.clear()
        if waiting:
            yield from run()

    def _logits(self, batch: Batch, which: Tensor, sources: Tensor) -> Tensor:
        graph, clean = self.computation, None
        if bool((sources == CLEAN).any()):
            clean = graph.senders_of(graph.capture(batch))
        run = _Rewired(graph, batch, self.aligned(batch, which), clean, sources.to(batch.main.device))
        return self.model.logits(batch, run.edits())


class _Rewired:
    """One run: how far every sender is from where it is to be read, filled in as the run goes."""

    def __init__(
        self, computation: Computation, batch: Batch, donor: Tensor, clean: Tensor | None, sources: Tensor
    ) -> None:
        self.computation, self.batch, self.sources = computation, batch, sources
        self.to_donor, self.to_clean = donor.clone(), None if clean is None else clean.clone()
        # Nothing is put in at padding, which no receiver of a real token reads.
        self.padding = None if batch.mask is None else ~batch.mask[:, :, None, None]
        self.streams: dict[Place, Tensor] = {}

    def edits(self) -> dict[Place, Patch]:
        """Place -> edit; most only look."""
        found: dict[Place, Patch] = {self.computation.source: self._note(None)}
        for part in self.computation.parts:
            active = self._active(part)
            if part.slots:
                if active:
                    found[part.norm] = self._remember(part)
                for place in dict.fromkeys(part.slots[column - part.receivers.start].place for column in active):
                    found[place] = self._project(part, place, active)
            elif active:
                found[part.norm] = self._add(part)
            if part.writes is not None:
                found[part.writes] = self._note(part)
        return found

    def _active(self, part: Part) -> list[int]:
        told = (self.sources[:, : part.upstream, part.receivers.start : part.receivers.stop] != CURRENT).any(0).any(0)
        return [part.receivers.start + column for column in told.nonzero().flatten().tolist()]

    def _note(self, part: Part | None) -> Patch:
        """Keeps how far what is written now is from the donor's and from the clean value."""
        rows = slice(0, 1) if part is None else slice(part.senders.start, part.senders.stop)

        def look(value: Tensor) -> Tensor:
            now = value[:, :, None] if part is None else self.computation.written(part, value)
            for gap in (self.to_donor, self.to_clean):
                if gap is not None:
                    gap[:, :, rows] -= now
                    if self.padding is not None:
                        gap[:, :, rows].masked_fill_(self.padding, 0)
            return value

        return look

    def _remember(self, part: Part) -> Patch:
        def look(value: Tensor) -> Tensor:
            self.streams[part.norm] = value
            return value

        return look

    def _add(self, part: Part) -> Patch:
        return lambda value: value + self._shift(part, [*part.receivers])[:, :, 0]

    def _shift(self, part: Part, columns: list[int]) -> Tensor:
        """(batch, positions, columns, width) what is added to the residual stream for some receivers of a part."""
        told = self.sources[:, : part.upstream, columns]
        total = torch.zeros(())
        for source, gap in ((DONOR, self.to_donor), (CLEAN, self.to_clean)):
            if gap is not None:
                chosen = (told == source).to(gap.dtype)
                total = total.to(gap) + torch.einsum("bur,bpud->bprd", chosen, gap[:, :, : part.upstream])
        return total

    def _project(self, part: Part, place: Place, active: list[int]) -> Patch:
        """The change of queries, keys or values that comes from reading a shifted residual stream."""
        columns = [column for column in active if part.slots[column - part.receivers.start].place == place]
        slots = [part.slots[column - part.receivers.start] for column in columns]
        norm, projection = (self.computation.model.module.get_submodule(p.path) for p in (part.norm, place))

        def patch(value: Tensor) -> Tensor:
            stream = self.streams[part.norm]
            moved = plain(norm, stream[:, :, None] + self._shift(part, columns)) - plain(norm, stream)[:, :, None]
            matrix = weights(projection, stream)
            blocks = torch.stack([matrix[:, slot.start : slot.stop] for slot in slots])
            change = torch.einsum("bprd,rdk->bprk", moved, blocks)
            index = torch.cat([torch.arange(slot.start, slot.stop, device=value.device) for slot in slots])
            return value.index_add(-1, index, change.flatten(-2).to(value.dtype))

        return patch


def sources_of(computation: Computation, kept: Tensor) -> Tensor:
    """(senders, receivers) sources for a circuit: the donor's value over every edge that is not kept."""
    return torch.where(kept | ~computation.allowed, CURRENT, DONOR).to(torch.int8)


def only(computation: Computation, *edges: tuple[int, int]) -> Tensor:
    """(senders, receivers) sources that patch these edges alone, given by row and column."""
    table = torch.zeros(computation.allowed.shape, dtype=torch.int8)
    for sender, receiver in edges:
        table[sender, receiver] = DONOR
    return table


def pick(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a batch, in any order and any number of times."""
    index, number = rows.to(batch.main.device), rows.cpu().numpy()
    return Batch(
        batch.rows[number],
        {name: value[index] for name, value in batch.fields.items()},
        None if batch.mask is None else batch.mask[index],
        {name: value[index] for name, value in batch.extra.items()},
        {name: value[number] for name, value in batch.columns.items()},
    )


def _plain_tensors() -> torch.inference_mode:
    # What is computed under an enclosing inference mode could not be used where gradients are wanted.
    return torch.inference_mode(False)
