"""The exact effect of replacing one unit at a time by a trusted donor's, many variants stacked in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import softmax

from causalmad.errors import FitError
from causalmad.hypotheses import Donors
from causalmad.hypotheses.donors import align
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.models.batching import in_stacks
from causalmad.models.clean import Clean
from causalmad.models.padding import one_batch
from causalmad.models.shortcuts import EditBatch, Patch, Shortcuts
from causalmad.signatures.units import Group, real_tokens
from causalmad.sites import Place, Site
from causalmad.targets import Target, require_alike

Unit: TypeAlias = tuple[Group, int]

_ROUNDINGS = 16  # logits that differ by at most this many roundings (of the largest) are the same logits
_NUMBERS = 2**18  # logits compared at a time: in double precision they should stay near the processor


@dataclass(frozen=True)
class Effects:
    """What the replacements did.

    Attributes:
        divergence: (batch, units, donors) KL from the clean output to the patched one, in nats; NaN where an input has
            no such unit.
        change: (batch, units, donors) target of the patched output minus that of the clean one; NaN likewise.
    """

    divergence: Tensor
    change: Tensor


@dataclass(frozen=True, eq=False)
class Start:
    """A batch as it is, for variants to be compared with.

    Attributes:
        clean: its run.
        logits: (batch, classes) in double precision.
        shares: (batch, classes) their softmax.
        read: (batch,) the target.
    """

    clean: Clean
    logits: Tensor
    shares: Tensor
    read: Tensor


@dataclass(frozen=True, eq=False)
class Resampler:
    """Runs the replacements of one model with one set of donors.

    Attributes:
        model: the opened model.
        donors: the trusted inputs whose values are put in.
        target: read-out whose change is measured.
        donor_batch: the donors as one batch.
        cached: place -> (donors, ...) the donors' activations there, computed once.
        shortcuts: runs the variants.
    """

    model: OpenModel
    donors: Donors
    target: Target
    donor_batch: Batch
    cached: dict[Place, Tensor]
    shortcuts: Shortcuts

    @classmethod
    def of(cls, model: OpenModel, donors: Donors, target: Target, groups: tuple[Group, ...]) -> Resampler:
        """Ready to run: the donors' activations at all places of the groups are captured once."""
        batch = donor_batch(model, donors)
        places = list({site.place: None for group in groups for site in group.sites})
        values = captured(model, batch, places) if places else {}
        return cls(model, donors, target, batch, values, Shortcuts(model, places))

    def start(self, batch: Batch) -> Start:
        """The clean run of a batch, once for all its variants."""
        clean = self.shortcuts.clean(batch)
        logits = clean.logits.double()
        return Start(clean, logits, softmax(logits, -1), self.target.bind(logits)(logits))

    def effects(self, start: Start | Batch, which: Tensor, group: Group) -> Effects:
        """Effects of every unit of a group.

        Args:
            start: the inputs, or what :meth:`start` made of them.
            which: (batch, donors) the donors of every input.
            group: the units.
        """
        known = self.start(start) if isinstance(start, Batch) else start
        batch = known.clean.batch
        counts = group.count(batch)
        shape = (len(batch), int(counts.max()), which.shape[1])
        kl, change = _empty(shape), _empty(shape)
        for rows, units, donors, edit in self._variants(batch, which, group, counts):
            column = batch.main.shape[-1] - int(self._widths(batch, group, units).max())
            kl[rows, units, donors], change[rows, units, donors] = self._measure(known, rows, edit, column)
        return Effects(kl, change)

    def joint(self, start: Start | Batch, which: Tensor, pairs: Sequence[tuple[Unit, Unit]]) -> Effects:
        """Effects of replacing two units at once by the same donor's, (batch, pairs, donors).

        Args:
            start: the inputs, or what :meth:`start` made of them.
            which: (batch, donors) the donors of every input.
            pairs: the units; NaN where an input lacks one of the two.
        """
        known = self.start(start) if isinstance(start, Batch) else start
        batch = known.clean.batch
        shape = (len(batch), len(pairs), which.shape[1])
        kl, change = _empty(shape), _empty(shape)
        for column, pair in enumerate(pairs):
            present = torch.stack([unit < group.count(batch).cpu() for group, unit in pair]).all(0)
            rows = present.nonzero().flatten().repeat_interleave(which.shape[1])
            donors = torch.arange(which.shape[1]).repeat(int(present.sum()))
            width = max(int(self._widths(batch, group, torch.tensor([unit]))) for group, unit in pair)
            for part in self.shortcuts.stacks(torch.full((len(rows),), width)):
                r, k = rows[part], donors[part]
                edits = [self._edit_unit(group, torch.full_like(r, unit), which[r, k]) for group, unit in pair]
                first = batch.main.shape[-1] - width
                kl[r, column, k], change[r, column, k] = self._measure(known, r, _both(*edits), first)
        return Effects(kl, change)

    def _measure(self, start: Start, rows: Tensor, edit: EditBatch, column: int) -> tuple[Tensor, Tensor]:
        """(variants,) divergence and change of the target of some rows of a batch under an edit."""
        found = self.shortcuts.logits(start.clean, rows, edit, column)
        kl, change = [], []
        for part in torch.arange(len(rows)).split(max(1, _NUMBERS // found.shape[-1])):
            own = rows[part].to(found.device)
            clean = start.logits[own]
            logits = settled(found[part.to(found.device)], clean)
            kl.append(shifted(start.shares[own], logits - clean))
            change.append(self.target.bind(clean)(logits) - start.read[own])
        return torch.cat(kl).float().cpu(), torch.cat(change).float().cpu()

    def _variants(
        self, batch: Batch, which: Tensor, group: Group, counts: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, EditBatch]]:
        """Stacks of variants (row, unit, donor) that share one run, with the edit that makes them."""
        # Unit by unit: where those of a stack are near the end, positions before them need not run.
        units, rows = (torch.arange(int(counts.max()))[:, None] < counts.cpu()[None, :]).nonzero(as_tuple=True)
        for place, chosen in _by_place(group, units):
            r = rows[chosen].repeat_interleave(which.shape[1])
            u = units[chosen].repeat_interleave(which.shape[1])
            k = torch.arange(which.shape[1]).repeat(len(chosen))
            for part in self.shortcuts.stacks(self._widths(batch, group, u)):
                yield r[part], u[part], k[part], self._edit(place, group, u[part], which[r[part], k[part]])

    def _widths(self, batch: Batch, group: Group, units: Tensor) -> Tensor:
        """(variants,) last columns of the padded rows that a replacement changes: a token, and what comes after it."""
        whole = torch.full_like(units, batch.main.shape[-1])
        return units + 1 if group.ragged and self.shortcuts.causal else whole

    def _edit_unit(self, group: Group, units: Tensor, donors: Tensor) -> EditBatch:
        """The edit of one unit, the same in all variants."""
        place = group.sites[0 if group.ragged else int(units[0])].place if group.sites else None
        return self._edit(place, group, units, donors)

    def _edit(self, place: Place | None, group: Group, units: Tensor, donors: Tensor) -> EditBatch:
        if place is not None:
            return self._edit_site(place, group, units, donors)

        def on_input(batch: Batch) -> tuple[Batch, dict[Place, Patch]]:
            new = align(self.donor_batch.main, self.donor_batch.mask, donors, batch)
            return batch.with_main(torch.where(input_mask(group, units, batch), new, batch.main)), {}

        return on_input

    def _edit_site(self, place: Place, group: Group, units: Tensor, donors: Tensor) -> EditBatch:
        def on_site(batch: Batch) -> tuple[Batch, dict[Place, Patch]]:
            new = align(self.cached[place], self.donor_batch.mask, donors, batch)

            def patch(value: Tensor) -> Tensor:
                return torch.where(_site_mask(group, units, value, batch), new.to(value.dtype), value)

            return batch, {place: patch}

        return on_site


def unit_tables(
    resampler: Resampler,
    inputs: Inputs,
    which: Tensor,
    groups: Sequence[Group],
    reduce: Callable[[Effects, Tensor], Mapping[str, Tensor]],
) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """Group -> statistic -> (n, units) numbers made of every unit's effects, NaN where an input has no such unit.

    Args:
        resampler: runs the replacements.
        inputs: at least one.
        which: (n, donors) the donors of every input.
        groups: the units.
        reduce: from the effects and the donors (batch, donors) to numbers (batch, units) by the statistic's name.
    """
    found: dict[str, dict[str, npt.NDArray[np.float64]]] = {group.name: {} for group in groups}
    for batch in resampler.model.batches(inputs):
        chosen, start = which[torch.as_tensor(batch.rows)], resampler.start(batch)
        for group in groups:
            units = int(inputs.lengths.max()) if group.ragged else len(group.names)
            for name, values in reduce(resampler.effects(start, chosen, group), chosen).items():
                table = found[group.name].setdefault(name, np.full((len(inputs), units), np.nan))
                table[batch.rows, : values.shape[1]] = values.double().numpy()
    return found


def shifted(shares: Tensor, shift: Tensor) -> Tensor:
    """(variants,) KL divergence in nats from a softmax to that of the same logits plus a shift, exactly zero for none.

    Args:
        shares: (variants, classes) the softmax, in double precision.
        shift: (variants, classes) what the logits change by.
    """
    # log E[exp d] - E[d], taken around the mean: neither the logarithms nor their difference is ever rounded away.
    around = shift - torch.linalg.vecdot(shares, shift)[:, None]
    near = torch.log1p(torch.linalg.vecdot(shares, torch.expm1(around) - around))
    far = around.amax(-1) > 500  # beyond what an exponential holds
    if bool(far.any()):
        near = torch.where(far, (shares.log() + around).logsumexp(-1), near)
    return near.clamp(min=0)


def settled(patched: Tensor, clean: Tensor) -> Tensor:
    """Patched logits (n, classes) in double precision, and exactly the clean ones where they differ by rounding.

    In single precision a small divergence is mostly the rounding of its logarithms; and the same logits from a batch
    of another shape differ in their last bits, which is no effect.

    Raises:
        ModelError: when the model gives other numbers of logits from run to run.
    """
    require_alike(patched, clean)
    rounding = _ROUNDINGS * torch.finfo(torch.float32).eps * clean.abs().amax(-1)
    wide, known = patched.double(), clean.double()
    same = (wide - known).abs().amax(-1) <= rounding
    return torch.where(same[:, None], known, wide) if bool(same.any()) else wide


def donor_batch(model: OpenModel, donors: Donors) -> Batch:
    """The donors as one batch.

    Raises:
        FitError: when they differ in length and the model takes no attention mask, or ignores it.
    """
    return one_batch(model, donors.inputs, "donors", FitError)


def captured(model: OpenModel, donors: Batch, places: Sequence[Place]) -> dict[Place, Tensor]:
    """Place -> (donors, ...) the donors' activations there."""
    return in_stacks(model, donors, lambda part: model.plain.run(part, read=places, output=False).values)


def _empty(shape: tuple[int, ...]) -> Tensor:
    """NaN, in single precision whatever torch's default is."""
    return torch.full(shape, float("nan"), dtype=torch.float32)


def _both(first: EditBatch, second: EditBatch) -> EditBatch:
    """One edit after the other."""

    def edit(batch: Batch) -> tuple[Batch, dict[Place, Patch]]:
        once, patches = first(batch)
        twice, more = second(once)
        for place in patches.keys() & more.keys():
            more[place] = _after(patches[place], more[place])
        return twice, {**patches, **more}

    return edit


def _after(first: Patch, second: Patch) -> Patch:
    return lambda value: second(first(value))


def _by_place(group: Group, units: Tensor) -> Iterator[tuple[Place | None, Tensor]]:
    """Which variants can share a run: those that edit the same place."""
    everything = torch.arange(len(units))
    if not group.sites:
        yield None, everything
    elif group.ragged:
        yield group.sites[0].place, everything
    else:
        places = [site.place for site in group.sites]
        for place in dict.fromkeys(places):
            members = torch.tensor([i for i, other in enumerate(places) if other == place])
            yield place, everything[torch.isin(units, members)]


def input_mask(group: Group, units: Tensor, batch: Batch) -> Tensor:
    """(batch, ...) bool: which entries of the main field belong to each row's unit."""
    if group.ragged:
        return _at_unit(units, batch)
    masks = torch.stack(group.masks)[units].to(batch.main.device)
    if batch.mask is None:
        return masks
    # Blocks of tokens are counted from the first real token, wherever the padding is.
    offset = torch.arange(batch.mask.shape[1], device=masks.device)[None, :] - batch.mask.long().argmax(-1)[:, None]
    inside = (offset >= 0) & (offset < masks.shape[1])
    return masks.gather(1, offset.clamp(0, masks.shape[1] - 1)) & inside & batch.mask


def _site_mask(group: Group, units: Tensor, value: Tensor, batch: Batch) -> Tensor:
    """A mask that broadcasts to an activation: which part of it is replaced in each variant."""
    if group.ragged:
        tokens = _at_unit(units, batch).to(value.device).reshape(*value.shape[:2], *[1] * (value.ndim - 2))
        return tokens & _part(group.sites[0], value[:1])
    # Only the units of this run: those at other places may be of another width.
    whole = {unit: _part(group.sites[unit], value[:1]) for unit in dict.fromkeys(units.tolist())}
    mask = torch.stack([whole[unit] for unit in units.tolist()])
    if batch.mask is not None and value.ndim >= 3 and value.shape[1] == batch.mask.shape[1]:
        mask = mask & batch.mask.to(value.device).reshape(*batch.mask.shape, *[1] * (value.ndim - 2))
    return mask


def _part(site: Site, value: Tensor) -> Tensor:
    """Bool, broadcasting to one row of an activation: the features that a site names."""
    heads_apart = bool(site.heads) and value.ndim == 4
    mask = torch.zeros(value.shape[-2:] if heads_apart else value.shape[-1:], dtype=torch.bool, device=value.device)
    if heads_apart:
        mask[list(site.heads)] = True
    elif site.heads:
        mask.unflatten(-1, (site.head_count, -1))[list(site.heads)] = True
    elif site.neurons:
        mask[list(site.neurons)] = True
    else:
        mask[:] = True
    return mask.reshape(*[1] * (value.ndim - 1 - mask.ndim), *mask.shape)


def _at_unit(units: Tensor, batch: Batch) -> Tensor:
    """(batch, positions) bool: the unit-th real token from the end (unit 0 is the last)."""
    mask = real_tokens(batch)
    from_end = mask.long().flip(-1).cumsum(-1).flip(-1) - 1
    return mask & (from_end == units.to(mask.device)[:, None])
