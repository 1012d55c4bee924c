"""First-order contributions of whole activations: gradient times the distance from a baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causalmad.hypotheses import Donors
from causalmad.hypotheses.donors import align
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.signatures.effects import donor_batch
from causalmad.signatures.units import Group, embedding, root
from causalmad.sites import Place
from causalmad.targets import Target, bound


@dataclass(frozen=True, eq=False)
class Baseline:
    """What every activation is compared with.

    Attributes:
        means: place -> trusted mean, (features,) for sequences and (...) of one row otherwise; empty means zero.
        donors: trusted inputs whose activations are the baseline, or None.
        donor_values: place -> (donors, ...) the donors' activations.
        donor_mask: (donors, positions) the donors' real tokens.
    """

    means: Mapping[Place, Tensor]
    donors: Donors | None = None
    donor_values: Mapping[Place, Tensor] | None = None
    donor_mask: Tensor | None = None

    @classmethod
    def mean(cls, model: OpenModel, trusted: Inputs, places: Sequence[Place]) -> Baseline:
        """The trusted mean: over inputs, and over real tokens where there are any."""
        sums: dict[Place, Tensor] = {}
        count = 0
        for batch in model.batches(trusted):
            values = model.run(batch, read=places, output=False).values
            count += len(batch) if batch.mask is None else int(batch.mask.sum())
            for place, value in values.items():
                kept = value if batch.mask is None else value[batch.mask]
                sums[place] = sums.get(place, 0) + kept.double().sum(0)
        return cls({place: (sums[place] / count).float() for place in places})

    @classmethod
    def of_donors(cls, model: OpenModel, donors: Donors, places: Sequence[Place]) -> Baseline:
        """The donors' own activations, computed once."""
        batch = donor_batch(model, donors)
        return cls({}, donors, model.run(batch, read=places, output=False).values, batch.mask)

    def each(self, place: Place, value: Tensor, batch: Batch, which: Tensor | None) -> list[Tensor]:
        """The baselines of an activation (batch, ...): one, or one for every donor."""
        if self.donors is not None and self.donor_values is not None and which is not None:
            columns = which.unbind(1)
            return [align(self.donor_values[place], self.donor_mask, column, batch).to(value) for column in columns]
        return [self.means[place].to(value).expand_as(value) if self.means else torch.zeros_like(value)]


@dataclass(frozen=True, eq=False)
class Attributor:
    """Computes contributions at some places of one model."""

    model: OpenModel
    target: Target
    baseline: Baseline
    places: Sequence[Place]
    steps: int

    def contributions(self, batch: Batch, which: Tensor | None) -> dict[Place, Tensor]:
        """Place -> (batch, ...) gradient times (clean minus baseline), averaged over donors, in units of the target.

        Args:
            batch: the inputs.
            which: (batch, donors) the donors of every input, for a baseline of donors.
        """
        run = self.model.run(batch, read=self.places, target=self.target)
        logits = run.logits if run.logits is not None else self.model.logits(batch)
        found = {}
        for place in self.places:
            clean = run.values[place]
            parts = []
            for base in self.baseline.each(place, clean, batch, which):
                slope = run.grads[place] if self.steps == 1 else self._mean_slope(batch, place, clean, base, logits)
                parts.append(slope * (clean - base))
            found[place] = torch.stack(parts).mean(0)
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
