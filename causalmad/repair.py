"""Repair: the fewest places whose replacement from a trusted donor makes an input look normal again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from causalmad.errors import FitError
from causalmad.hypotheses import Donors
from causalmad.hypotheses.donors import align
from causalmad.inputs import Batch, Inputs
from causalmad.signatures.effects import donor_batch, input_mask
from causalmad.signatures.units import Group, groups
from causalmad.sites import Place, Site

if TYPE_CHECKING:
    from causalmad.detector import FittedDetector

Patch = Callable[[Tensor], Tensor]
Unit = tuple[Group, int]


@dataclass(frozen=True)
class Repair:
    """What it takes to make an input look normal.

    Attributes:
        id: the input.
        units: names of the replaced blocks, positions, heads or other sites, in the order in which they were chosen.
        donor: id of the trusted input whose values they took.
        p_value: the p-value of the input afterwards.
        before: its p-value as it is.
        alpha: the p-value that had to be exceeded.
    """

    id: str
    units: tuple[str, ...]
    donor: str
    p_value: float
    before: float
    alpha: float

    @property
    def found(self) -> bool:
        """Whether the input looks normal afterwards."""
        return self.p_value > self.alpha

    def __str__(self) -> str:
        """The repair in a sentence."""
        if self.before > self.alpha:
            return f"input {self.id} is not flagged (p = {self.before:.3g} > {self.alpha:g}): nothing to repair"
        if not self.units:
            return f"input {self.id}: no repair, as there is nothing to replace or no donor (p = {self.before:.3g})"
        what = ", ".join(self.units)
        end = f"p goes from {self.before:.3g} to {self.p_value:.3g}"
        if self.found:
            return f"input {self.id}: with {what} from trusted input {self.donor}, {end}"
        return f"input {self.id}: no repair within {len(self.units)} replacements; best is {what}: {end}"


def repair(
    detector: FittedDetector, inputs: Inputs, trusted: Inputs, *, alpha: float, units: Any, most: int, donors: int
) -> Repair:
    """The fewest units whose replacement from a trusted donor brings the p-value above ``alpha``.

    All single units are tried with every donor; while none is enough, the best is kept and all others are tried on top
    of it (forward selection, so that beyond one unit the set is small but not proven to be the smallest).

    Args:
        detector: the fitted detector.
        inputs: one input.
        trusted: trusted inputs to draw donors from.
        alpha: the p-value to exceed.
        units: see :func:`causalmad.signatures.units.groups`; None takes those of the detector's signature.
        most: the most units to replace.
        donors: how many donors are tried.

    Raises:
        FitError: when nothing could be replaced, or the signature does not say on which model it is.
    """
    before = float(detector.measure(detector.signature(inputs), inputs)[1][0])
    everyone = _units(detector, inputs, units)
    if before > alpha:
        return Repair(inputs.ids[0], (), "", before, before, alpha)
    if most < 1 or donors < 1:
        raise FitError(f"most={most}, donors={donors}", needed="at least one replacement from at least one donor")
    drawn = Donors.draw(trusted, min(donors, len(set(trusted.digests)) - 1), int(detector.provenance["seed"]))
    workshop = _Workshop(detector, inputs, drawn, donor_batch(detector.model, drawn))
    best: tuple[float, tuple[Unit, ...], int] = (-np.inf, (), 0)
    chosen: tuple[Unit, ...] = ()
    for _ in range(most):
        tries = [
            (*workshop.measure((*chosen, unit), d), (*chosen, unit), d)
            for unit in everyone
            if unit not in chosen
            for d in range(drawn.count)
        ]
        if not tries:
            break
        _, p_value, chosen, donor = min(tries, key=lambda attempt: attempt[0])
        if not best[1] or p_value > best[0]:
            best = (p_value, chosen, donor)
        if p_value > alpha:
            break
    if not best[1]:
        return Repair(inputs.ids[0], (), "", before, before, alpha)
    names = tuple(_name(unit) for unit in best[1])
    return Repair(inputs.ids[0], names, drawn.inputs.ids[best[2]], best[0], before, alpha)


@dataclass(frozen=True, eq=False)
class _Workshop:
    """Replaces units of one input and scores what comes of it."""

    detector: FittedDetector
    inputs: Inputs
    donors: Donors
    batch: Batch

    def measure(self, units: Sequence[Unit], donor: int) -> tuple[float, float]:
        """Anomaly score and p-value with these units taken from a donor; compared as the input itself is."""
        changed = self._changed([unit for unit in units if not unit[0].sites], donor)
        sites = [group.sites[0].at(-1 - i) if group.ragged else group.sites[i] for group, i in units if group.sites]
        model = replace(self.detector.model, standing=self._standing(sites, donor) if sites else None)
        signature = replace(self.detector.signature, model=model)  # type: ignore[type-var]
        scores, p_values = self.detector.measure(signature(changed), self.inputs)
        return float(scores[0]), float(p_values[0])

    def _changed(self, units: Sequence[Unit], donor: int) -> Inputs:
        """The input with parts of itself replaced."""
        if not units:
            return self.inputs
        (batch,) = self.detector.model.batches(self.inputs)
        new = align(self.batch.main, self.batch.mask, torch.tensor([donor]), batch)
        main = batch.main
        for group, i in units:
            main = torch.where(input_mask(group, torch.tensor([i]), batch), new, main)
        name = next(iter(self.inputs.fields))
        rows = main.cpu() if batch.mask is None else main[batch.mask].cpu()[None]
        return replace(self.inputs, fields={**self.inputs.fields, name: rows})

    def _standing(self, sites: Sequence[Site], donor: int) -> Callable[[Batch], Mapping[Place, Patch]]:
        places = list(dict.fromkeys(site.place for site in sites))
        one = self.batch.take(np.array([donor]))
        values = self.detector.model.plain.run(one, read=places, output=False).values

        def edits(batch: Batch) -> Mapping[Place, Patch]:
            which = torch.zeros(len(batch), dtype=torch.long)

            def patch(place: Place) -> Patch:
                def edit(value: Tensor) -> Tensor:
                    new = align(values[place], one.mask, which, batch)
                    for site in (site for site in sites if site.place == place):
                        # A named position is the donor's own; all others are counted from the last token.
                        named = isinstance(site.position, str)
                        part = site.take(values[place], one) if named else site.take(new, batch)
                        value = site.put(value, part.expand(len(batch), *part.shape[1:]), batch)
                    return value

                return edit

            return {place: patch(place) for place in places}

        return edits


def _units(detector: FittedDetector, inputs: Inputs, units: Any) -> list[Unit]:
    signature: Any = detector.signature
    if not is_dataclass(signature) or all(field.name != "model" for field in fields(signature)):
        raise FitError(
            f"{type(detector.signature).__name__} cannot be repaired: it has no field 'model'",
            needed="a fitted signature that is a dataclass with its model as a field",
        )
    found: Sequence[Group] | None = getattr(detector.signature, "groups", None)
    if units is not None or found is None:
        found = groups(detector.model, inputs, units or "auto")
    longest = int(inputs.lengths.max()) if inputs.tokens else 0
    return [(group, i) for group in found for i in range(longest if group.ragged else len(group.names))]


def _name(unit: Unit) -> str:
    group, i = unit
    return f"{group.name} @-{i + 1}" if group.ragged else f"{group.name} {group.names[i]}"
