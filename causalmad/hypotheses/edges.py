"""Exact edge patching: one run in which every receiver reads each of its senders from where it is told to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from causalmad.errors import HypothesisError
from causalmad.hypotheses.bench import Bench
from causalmad.hypotheses.computation import Computation, Part
from causalmad.hypotheses.donors import Donors, align
from causalmad.hypotheses.rewiring import CLEAN, CURRENT, DONOR, Patch, Plan, Rewired
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel, open_model
from causalmad.models.batching import in_stacks
from causalmad.models.clean import Clean
from causalmad.models.shortcuts import Shortcuts
from causalmad.sites import Place

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

    @cached_property
    def shortcuts(self) -> Shortcuts:
        """Runs from the first receiver that reads something else on."""
        parts = self.computation.parts
        slots = [slot.place for part in parts for slot in part.slots]
        return Shortcuts(self.model, [*(part.norm for part in parts), *slots])

    def start(self, batch: Batch) -> Clean:
        """The clean run of a batch, once for all its variants."""
        with _plain_tensors(), self.model.quiet():
            return self.shortcuts.clean(batch, read=self.computation.places)

    def logits(self, batch: Batch | Clean, which: Tensor, sources: Tensor) -> Tensor:
        """(batch, classes) logits when every receiver reads as it is told.

        Args:
            batch: the inputs, or what :meth:`start` made of them.
            which: (batch,) donor of each row.
            sources: (batch, senders, receivers) or (senders, receivers), ``CURRENT``, ``DONOR`` or ``CLEAN``.
        """
        table = sources if sources.ndim == 3 else sources[None]
        apart = isinstance(batch, Clean) or bool((sources == CLEAN).any())
        start = self.start(batch) if apart and isinstance(batch, Batch) else batch
        inputs = start.batch if isinstance(start, Clean) else start
        rows = torch.arange(len(inputs)).split(self._most(inputs, table[None], apart))
        found = [
            self._logits(start, part, which, table[None] if len(table) == 1 else table[None, part]) for part in rows
        ]
        return torch.cat(found)

    def stacked(self, batch: Batch | Clean, which: Tensor, variants: Iterable[Tensor]) -> Iterator[Tensor]:
        """(batch, classes) logits of every variant in turn, many of them in one run.

        Args:
            batch: the inputs, or what :meth:`start` made of them.
            which: (batch,) donor of each row.
            variants: each (senders, receivers) sources, the same for all rows. Those in a row that depart from the
                clean run at the same receiver cost least.
        """
        start = self.start(batch) if isinstance(batch, Batch) else batch
        count, rows = len(start.batch), torch.arange(len(start.batch))
        waiting: list[Tensor] = []

        def run() -> Iterator[Tensor]:
            if len(waiting) == 1:
                yield self.logits(start, which, waiting[0])
            else:
                yield from self._logits(start, rows, which, torch.stack(waiting)[:, None]).split(count)
            waiting.clear()

        for sources in variants:
            together = [*waiting, sources]
            # Where only the logits read something else, only the last position is run.
            last = bool(start.keys) and all(departure(table) >= table.shape[1] - 1 for table in together)
            most = self.shortcuts.rows(1 if last else start.batch.main.shape[1])
            if waiting and len(together) * count > min(most, self._most(start.batch, torch.stack(together)[:, None])):
                yield from run()
            waiting.append(sources)
        if waiting:
            yield from run()

    def _paths(self, still: Sequence[Part]) -> set[str]:
        """The modules of parts that give what they give in the clean run."""
        family, found = self.model.architecture, set[str]()
        if family is None or family.wiring is None:
            return found
        for number in (self.computation.parts.index(part) for part in still):
            layer, second = divmod(number, 2)
            if layer < family.layers:
                norm = family.wiring.mlp_norm if second else family.wiring.attention_norm
                inside = (norm, family.mlp if second else family.attention)
                found |= {family.path(layer, path) for path in inside}
        blocks = [
            (family.path(layer), self.computation.parts[2 * layer : 2 * layer + 2]) for layer in range(family.layers)
        ]
        return found | {path for path, parts in blocks if {*parts} <= {*still}}

    def _most(self, batch: Batch, sources: Tensor, apart: bool = True) -> int:
        """Rows of one run for which all that has to be known can be held at once."""
        row = int(self.written.shape[3] * batch.main.shape[1])
        ceiling = 3 * sources.shape[-2] + sources.shape[-1]
        if len(sources) * len(batch) * row * ceiling <= _MOST:
            return _MOST // (row * ceiling)
        return max(1, _MOST // (row * Plan(self.computation, sources.cpu(), apart).width))

    def _logits(self, start: Clean | Batch, rows: Tensor, which: Tensor, sources: Tensor) -> Tensor:
        """(variants * rows, classes) logits of some rows, variant by variant.

        Args:
            start: the clean run, or the inputs where it is not needed.
            rows: (rows,) which inputs.
            which: (batch,) donor of each input.
            sources: (variants, rows, senders, receivers), where one row may stand for all.
        """
        graph, apart = self.computation, isinstance(start, Clean)
        inputs = start.batch if isinstance(start, Clean) else start
        plan = Plan(graph, sources.cpu(), apart)
        all_rows = rows.repeat(len(sources))
        if isinstance(start, Clean) and plan.idle:
            return start.logits[all_rows.to(start.logits.device)]
        values = start.values if isinstance(start, Clean) else {}
        some = len(rows) < len(inputs)
        clean = {place: value[rows.to(value.device)] if some else value for place, value in values.items()}

        def edit(batch: Batch) -> tuple[Batch, dict[Place, Patch]]:
            run = Rewired(graph, plan, batch, clean, self.values, self.written, self.donor_batch.mask, which[rows])
            return batch, run.edits()

        with _plain_tensors(), self.model.quiet():
            if isinstance(start, Clean):
                return self.shortcuts.logits(start, all_rows, edit, still=self._paths(plan.still))
            return self.model.logits(*edit(pick(start, all_rows)))


def departure(sources: Tensor) -> int:
    """Column of the first receiver that reads a donor's value, or the number of all."""
    return next(iter((sources == DONOR).any(0).nonzero().flatten().tolist()), sources.shape[1])


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
