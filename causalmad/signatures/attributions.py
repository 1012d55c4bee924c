"""First-order contributions of whole activations: gradient times the distance from a baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.errors import FitError
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.models.last_position import LastPosition
from causalmad.signatures.baselines import Baseline
from causalmad.signatures.columns import Reduced, by_place, placed
from causalmad.signatures.sums import unit_sums
from causalmad.signatures.units import Group, embedding, root
from causalmad.sites import Place
from causalmad.targets import Target, bound


@dataclass(frozen=True, eq=False)
class Attributor:
    """Computes contributions at some places of one model."""

    model: OpenModel
    target: Target
    baseline: Baseline
    places: Sequence[Place]
    steps: int

    @cached_property
    def runs(self) -> LastPosition:
        """Runs of the model for the gradients alone."""
        return LastPosition(self.model)

    def contributions(self, batch: Batch, which: Tensor | None) -> dict[Place, Tensor]:
        """Place -> (batch, ...) gradient times (clean minus baseline), averaged over donors, in units of the target.

        Args:
            batch: the inputs.
            which: (batch, donors) the donors of every input, for a baseline of donors.
        """
        # Along a line the points themselves are wanted, at every position.
        model = self.runs if self.steps == 1 else self.model
        run = model.run(batch, read=self.places, target=self.target)
        logits = run.logits if run.logits is not None else self.model.logits(batch)
        found = {}
        for place in self.places:
            clean = run.values[place]
            if self.steps == 1 and self.baseline.zero:
                found[place] = run.grads[place] * clean
                continue
            parts = []
            for base in self.baseline.each(place, clean, batch, which):
                slope = run.grads[place] if self.steps == 1 else self._mean_slope(batch, place, clean, base, logits)
                parts.append(slope * (clean - base))
            found[place] = parts[0] if len(parts) == 1 else torch.stack(parts).mean(0)
        return found

    def _mean_slope(self, batch: Batch, place: Place, clean: Tensor, base: Tensor, logits: Tensor) -> Tensor:
        """Gradient averaged along the straight line from ``base`` to ``clean`` (midpoint rule)."""
        asked = bound(self.target, logits)
        total = torch.zeros_like(clean)
        for step in range(self.steps):
            point = base + (step + 0.5) / self.steps * (clean - base)
            run = self.model.run(batch, read=[place], edits={place: _constant(point)}, target=asked)
            total += run.grads[place]
        return total / self.steps


def _constant(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _: value


def places_of(model: OpenModel, inputs: Inputs, groups: Sequence[Group]) -> dict[str, tuple[Place, ...]]:
    """Name of a group -> the places at which its units are attributed: their own, the input's, or the embedding's."""
    found = {}
    for group in groups:
        if group.sites:
            found[group.name] = tuple(dict.fromkeys(site.place for site in group.sites))
        else:
            found[group.name] = (embedding(model) if inputs.tokens else root(),)
    return found


def flat(places: Mapping[str, Sequence[Place]]) -> tuple[Place, ...]:
    """All places of the groups, each once, in the order of the groups."""
    return tuple(dict.fromkeys(place for found in places.values() for place in found))


def sums(
    model: OpenModel,
    inputs: Inputs,
    groups: Sequence[Group],
    places: Mapping[str, Sequence[Place]],
    contribute: Callable[[Batch], Mapping[Place, Tensor]],
) -> dict[tuple[str, str], npt.NDArray[np.float64]]:
    """(group, "sum" or "size") -> (n, units) signed and absolute sums, NaN where an input has no such unit.

    Args:
        model: kept quiet (eval mode, frozen, locked) for as long as it lasts.
        inputs: what is attributed to.
        groups: the units.
        places: name of a group -> the places at which its units are.
        contribute: from a batch to the (batch, ...) contributions of all entries at all places.

    Raises:
        FitError: where a contribution is NaN or infinite.
    """
    tables: dict[tuple[str, str], npt.NDArray[np.float64]] = {}
    with model.quiet():
        for batch in model.batches(inputs):
            found = contribute(batch)
            for group in groups:
                for kind, values in unit_sums(group, found, places[group.name], batch).items():
                    missing = 0 if batch.mask is None or not group.ragged else values.shape[1] - batch.mask.sum(1)
                    require_finite(values, group.name, batch, missing)
                    width = int(inputs.lengths.max()) if group.ragged else values.shape[1]
                    table = tables.setdefault((group.name, kind), np.full((len(inputs), width), np.nan))
                    table[batch.rows, : values.shape[1]] = values
    return tables


def require_finite(values: npt.NDArray[np.float64], what: str, batch: Batch, missing: Tensor | int = 0) -> None:
    """Contributions are numbers.

    Args:
        values: (batch, units).
        what: they are contributions of.
        batch: the inputs.
        missing: (batch,) how many units each input does not have, which are NaN.

    Raises:
        FitError: where one is NaN or infinite.
    """
    if np.isfinite(values).all():
        return
    bad = (~np.isfinite(values)).sum(1) > (missing if isinstance(missing, int) else missing.cpu().numpy())
    if bad.any():
        first = int(bad.argmax())
        raise FitError(
            f"{int(bad.sum())} of a batch's {len(batch)} inputs have contributions of {what} that are NaN or infinite; "
            f"the first is input {batch.ids[first] if batch.ids else int(batch.rows[first])!r}",
            causes=["a gradient that is not finite: a root or a division at zero", "overflow in half precision"],
            tries=["model.float()", "a signature without gradients: activations, resampling-profile"],
        )


def unit_columns(group: Group, name: str, values: npt.NDArray[np.float64], longest: int) -> Reduced:
    """One column per unit of a group.

    Args:
        group: the units.
        name: what the values are, for the names of the columns.
        values: (n, units), NaN where an input has no such unit.
        longest: tokens of the longest trusted input; what lies further from the end is added up.
    """
    if group.ragged:
        sites = tuple(map(str, group.sites)) * longest
        return by_place(name, values, tuple(f"@-{i + 1}" for i in range(longest)), sites, ragged=True)
    units = group.names if len(group.names) == values.shape[1] else tuple(map(str, range(values.shape[1])))
    sites = tuple(map(str, group.sites)) if len(group.sites) == len(units) else ()
    return by_place(name, values, units, sites, ragged=False)


def unit_values(group: Group, values: npt.NDArray[np.float64], longest: int) -> npt.NDArray[np.float64]:
    """The values of :func:`unit_columns`, where the columns are known already."""
    return placed(values, longest if group.ragged else values.shape[1], ragged=group.ragged)


def places_to_data(places: Mapping[str, Sequence[Place]]) -> dict[str, list[list[Any]]]:
    """Places of groups as plain data, for a file; :func:`places_from_data` is the way back."""
    return {name: [list(place) for place in found] for name, found in places.items()}


def places_from_data(data: Any, groups: Sequence[Group]) -> dict[str, tuple[Place, ...]]:
    """The places that :func:`places_to_data` wrote; a file keeps no order of names, so in the order of the groups."""
    return {group.name: tuple(_place(row) for row in data[group.name]) for group in groups}


def _place(row: Any) -> Place:
    path, side, element = row
    return Place(str(path), "input" if side == "input" else "output", element)
