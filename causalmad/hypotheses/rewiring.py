"""One run in which every receiver reads each of its senders from where it is told to, as edits of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from causalmad.hypotheses.computation import Computation, Part, plain, weights
from causalmad.hypotheses.donors import align
from causalmad.inputs import Batch
from causalmad.sites import Place

Patch: TypeAlias = Callable[[Tensor], Tensor]

# What a receiver reads of a sender: its value in the same run, in the donor's run, or in the clean run.
CURRENT, DONOR, CLEAN = 0, 1, 2


class Plan:
    """What some tables of sources ask of a run: what it has to compute, to know and to put in.

    A sender that most of its receivers read from elsewhere is replaced where it writes, and the others are given what
    they lack of it: a sender that is frozen but for one receiver then costs one receiver, and not all others.

    Args:
        computation: the model as a graph.
        sources: (variants, rows, senders, receivers) ``CURRENT``, ``DONOR`` or ``CLEAN``, on the CPU; or a single row
            that stands for all.
        apart: whether the clean values are known beside the run; otherwise all senders are looked at in it.

    Attributes:
        replaced: source -> (variants, rows, senders) whose values are put in where they are written.
        moved: source -> (variants, rows, senders, receivers) how often the way there is added to what a receiver reads.
        active: part -> columns of receivers that read something else than what is written.
        still: parts that give what they give in the clean run.
        before: senders as in the clean run that receivers read elsewhere.
        after: source -> other senders whose way there has to be known.
    """

    def __init__(self, computation: Computation, sources: Tensor, apart: bool) -> None:
        self.computation, self.apart = computation, apart
        allowed = computation.allowed
        told, half = torch.where(allowed, sources, CURRENT), allowed.sum(-1) / 2
        donor = told == DONOR
        put = donor.sum(-1) > half
        self.replaced = {DONOR: put, CLEAN: torch.zeros_like(put)}
        self.moved = {DONOR: donor.to(torch.int8) - (put[..., None] & allowed).to(torch.int8)}
        self.moved[CLEAN] = torch.zeros_like(self.moved[DONOR])
        self.active, self.still = dict[Part, list[int]](), list[Part]()
        # Senders that may come out otherwise than in the clean run, and whether what they write is left in the stream.
        fresh = torch.full_like(put[0, 0], not apart)
        dirty = not apart or bool(put[..., 0].any())
        for part in computation.parts:
            dirty = self._go(part, told == CLEAN, half, fresh, dirty)
        needed = {kind: table.ne(0).any(-1).any(0).any(0) for kind, table in self.moved.items()}
        self.before = (needed[DONOR] & ~fresh).nonzero().flatten()
        self.after = {kind: (rows & fresh).nonzero().flatten() for kind, rows in needed.items()}

    def _go(self, part: Part, clean: Tensor, half: Tensor, fresh: Tensor, dirty: bool) -> bool:
        """Looks at the next part; whether the residual stream behind it may be another than in the clean run."""
        columns, rows = (slice(x.start, x.stop) for x in (part.receivers, part.senders))
        reading = torch.stack([table[..., columns].ne(0).any(-2) for table in self.moved.values()]).any(0)
        self.active[part] = [part.receivers.start + column for column in _some(reading).tolist()]
        put = bool(self.replaced[DONOR][..., rows].any())
        if not (dirty or self.active[part]):
            if not put:
                self.still.append(part)
            return put
        into = self.computation.into[columns, rows]
        touched = (reading[..., None] & into).any(-2) | dirty
        fresh[rows] |= touched.any(0).any(0)
        clean = clean[..., rows, :] & fresh[rows][:, None]
        frozen = clean.sum(-1) > half[rows]
        default = frozen[..., None] & self.computation.allowed[rows]
        self.replaced[CLEAN][..., rows] = frozen
        self.moved[CLEAN][..., rows, :] = clean.to(torch.int8) - default.to(torch.int8)
        return dirty or put or bool((touched & ~frozen).any())

    @property
    def idle(self) -> bool:
        """Whether nothing is to be computed."""
        return len(self.still) == len(self.computation.parts)

    @property
    def width(self) -> int:
        """How many residual streams are held at once for a row and position."""
        return max(1, sum(map(len, self.after.values())) + 2 * max(map(len, self.active.values())))


def _some(table: Tensor) -> Tensor:
    """Numbers along the last axis at which there is anything but zero."""
    return table.ne(0).flatten(0, -2).any(0).nonzero().flatten()


class Rewired:
    """Edits that make a run read as it is planned, filled in as the run goes.

    Args:
        computation: the model as a graph.
        plan: what is read.
        batch: the rows, variant by variant, possibly without their first columns.
        clean: place -> (rows, ...) the clean activations of the rows of one variant; empty where the plan knows none.
        values: place -> the donors' activations where senders are.
        donors: (donors, positions, senders, width) what every sender writes on the donors.
        mask: (donors, positions) their real tokens.
        which: (rows,) donor of each row of a variant.
    """

    def __init__(
        self,
        computation: Computation,
        plan: Plan,
        batch: Batch,
        clean: Mapping[Place, Tensor],
        values: Mapping[Place, Tensor],
        donors: Tensor,
        mask: Tensor | None,
        which: Tensor,
    ) -> None:
        self.computation, self.plan, self.batch, self.clean = computation, plan, batch, clean
        self.values, self.donors, self.mask, self.which = values, donors, mask, which.to(donors.device)
        self.streams: dict[Place, Tensor] = {}

    def edits(self) -> dict[Place, Patch]:
        """Place -> edit; some only look."""
        found: dict[Place, Patch] = {}
        put = (_some(table) for table in self.plan.replaced.values())
        looked = set(torch.cat([*self.plan.after.values(), *put]).tolist())
        if 0 in looked:
            found[self.computation.source] = self._write(None)
        for part in self.computation.parts:
            active = self.plan.active[part]
            if part.slots:
                if active:
                    found[part.norm] = self._remember(part)
                for place in dict.fromkeys(part.slots[column - part.receivers.start].place for column in active):
                    found[place] = self._project(part, place, active)
            elif active:
                found[part.norm] = self._add(part)
            if part.writes is not None and part not in self.plan.still and looked & {*part.senders}:
                found[part.writes] = self._write(part)
        return found

    @cached_property
    def base(self) -> Batch:
        """The rows of one variant."""
        return self.batch.take(torch.arange(len(self.which)).numpy())

    @cached_property
    def before(self) -> Tensor:
        """(rows, positions, senders, width) how far senders of the clean run are from the donor's, for one variant."""
        rows = self.plan.before
        return self._masked(self._donor(rows) - self._written(rows), self.base)

    @cached_property
    def after(self) -> dict[int, Tensor]:
        """Source -> (all rows, positions, senders, width) how far what is written in this run is from there."""
        count = len(self.batch) // len(self.which)
        made = {DONOR: self._donor, CLEAN: self._written}
        return {
            kind: self._masked(made[kind](rows).repeat(count, 1, 1, 1), self.batch)
            for kind, rows in self.plan.after.items()
            if len(rows)
        }

    def _donor(self, rows: Tensor) -> Tensor:
        return align(self.donors[:, :, rows.to(self.donors.device)], self.mask, self.which, self.base)

    def _written(self, rows: Tensor) -> Tensor:
        """What some senders write in the clean run, at the columns that are run."""
        graph, wanted, found = self.computation, rows.tolist(), []
        for part in (None, *(part for part in graph.parts if part.writes is not None)):
            inside = range(1) if part is None else part.senders
            chosen = [row - inside.start for row in wanted if row in inside]
            if chosen:
                place = graph.source if part is None or part.writes is None else part.writes
                value = self.clean[place][:, -self.batch.main.shape[1] :]
                found.append(value[:, :, None] if part is None else graph.written(part, value, chosen))
        return torch.cat(found, dim=2)

    @staticmethod
    def _masked(gap: Tensor, batch: Batch) -> Tensor:
        # Nothing is put in at padding, which no receiver of a real token reads.
        return gap if batch.mask is None else gap.masked_fill_(~batch.mask.to(gap.device)[:, :, None, None], 0)

    def _write(self, part: Part | None) -> Patch:
        """Takes what is written now from the donor's and from the clean value, and puts in what most read."""
        inside = range(1) if part is None else part.senders

        def look(value: Tensor) -> Tensor:
            for kind, gap in self.after.items():
                known = self.plan.after[kind].tolist()
                rows = [(at, row - inside.start) for at, row in enumerate(known) if row in inside]
                if rows:
                    at, chosen = slice(rows[0][0], rows[-1][0] + 1), [row for _, row in rows]
                    now = value[:, :, None] if part is None else self.computation.written(part, value, chosen)
                    gap[:, :, at] -= now
                    self._masked(gap[:, :, at], self.batch)
            return self._put(part, value, inside)

        return look

    def _put(self, part: Part | None, value: Tensor, inside: range) -> Tensor:
        place = self.computation.source if part is None or part.writes is None else part.writes
        whole = value.unflatten(-1, (len(inside), -1)).unflatten(0, (-1, len(self.which)))
        for kind, table in self.plan.replaced.items():
            chosen = table[..., inside.start : inside.stop]
            if not bool(chosen.any()):
                continue
            if kind == DONOR:
                new = align(self.values[place], self.mask, self.which, self.base)
            else:
                new = self.clean[place][:, -self.batch.main.shape[1] :]
            real = True if self.base.mask is None else self.base.mask.to(value.device)[:, :, None, None]
            mask = chosen.to(value.device)[:, :, None, :, None] & real
            whole = torch.where(mask, new.unflatten(-1, (len(inside), -1)), whole)
        flat: Tensor = whole.flatten(0, 1).flatten(-2)
        return flat

    def _remember(self, part: Part) -> Patch:
        def look(value: Tensor) -> Tensor:
            self.streams[part.norm] = value
            return value

        return look

    def _add(self, part: Part) -> Patch:
        return lambda value: value + self._shift(part, [*part.receivers])[:, :, 0]

    def _shift(self, part: Part, columns: list[int]) -> Tensor:
        """(all rows, positions, columns, width) what is added to the residual stream for receivers of a part."""
        plan, count = self.plan, len(self.batch) // len(self.which)
        total = torch.zeros(())
        for kind, rows, gap in (
            (DONOR, plan.before, None),
            *((kind, plan.after[kind], gap) for kind, gap in self.after.items()),
        ):
            seen = int((rows < part.upstream).sum())
            if not seen:
                continue
            told = plan.moved[kind][:, :, rows[:seen]][..., columns]
            if gap is None:
                told = told.to(self.before)
                # Variants share what was written before their first change, and often the table of all rows.
                one = told.shape[1] == 1
                found = torch.einsum(
                    "vur,bpud->vbprd" if one else "vbur,bpud->vbprd",
                    told[:, 0] if one else told,
                    self.before[:, :, :seen],
                ).flatten(0, 1)
            else:
                told = told.to(gap).expand(count, len(self.which), -1, -1).flatten(0, 1)
                found = torch.einsum("nur,npud->nprd", told, gap[:, :, :seen])
            total = total.to(found) + found
        return total

    def _project(self, part: Part, place: Place, active: list[int]) -> Patch:
        """The change of queries, keys or values that comes from reading a shifted residual stream."""
        columns = [column for column in active if part.slots[column - part.receivers.start].place == place]
        slots = [part.slots[column - part.receivers.start] for column in columns]
        norm, projection = (self.computation.model.module.get_submodule(p.path) for p in (part.norm, place))

        def patch(value: Tensor) -> Tensor:
            stream, count = self.streams[part.norm], len(self.which)
            # A receiver only of the variants in which it reads something else.
            moved = torch.stack([table[..., columns].ne(0).any(-2).any(1) for table in self.plan.moved.values()]).any(0)
            variant, column = moved.to(value.device).nonzero(as_tuple=True)
            shift = self._shift(part, columns).unflatten(0, (-1, count))[variant, :, :, column]
            own = stream.unflatten(0, (-1, count))
            change = plain(norm, own[variant] + shift) - plain(norm, stream).unflatten(0, (-1, count))[variant]
            matrix = weights(projection, stream)
            blocks = torch.stack([matrix[:, slot.start : slot.stop] for slot in slots])
            change = torch.einsum("nbpd,ndk->nkbp", change, blocks[column])
            index = torch.stack([torch.arange(slot.start, slot.stop, device=value.device) for slot in slots])
            new = value.unflatten(0, (-1, count)).clone()
            new[variant[:, None], :, :, index[column]] += change.to(value.dtype)
            flat: Tensor = new.flatten(0, 1)
            return flat

        return patch
