"""Donor moments: how the effect of replacing a unit varies with whose values are put in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.hypotheses import Donors
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.models.batching import in_stacks
from causalmad.signatures.base import Column, Signatures, State, require_inputs
from causalmad.signatures.columns import Reduced, by_place, join
from causalmad.signatures.effects import Effects, Resampler, donor_batch, unit_tables
from causalmad.signatures.floors import with_floors
from causalmad.signatures.scaled import Scales, sample
from causalmad.signatures.units import Group, groups, groups_from_data, groups_to_data
from causalmad.targets import Readout, Target, TopMargin, as_target

_DAMPING = 0.1**2


@dataclass(frozen=True)
class DonorMoments:
    """How the effect of replacing a unit varies with the donor: its moments, and its mean by the donor's own answer.

    A part that copies what is put into it and one that only notices that something changed may have the same mean
    effect; they differ in how the effect depends on the donor. Every unit is replaced by the values of every donor in
    turn, the same donors for all inputs, and the signed change of the target is noted.

    Args:
        units: ``blocks``, ``positions``, ``residual``, ``heads``, ``mlps``, ``layers``, or several of them; ``auto``
            takes the blocks where the data declares them, otherwise the positions, and the heads where there are any.
        draws: how many trusted donors; an input that is itself a donor uses a spare.
        classes: the response is kept for at most this many classes that donors were given by the model: those most
            frequent on trusted inputs.
        target: the scalar whose change is measured, by default the margin of the model's own answer.

    Columns are, for every unit, the mean, variance, skewness, minimum and maximum over donors of the change, and its
    mean over the donors of each class (over all donors for an input that has none of the class, since it is that donor
    itself), as signed logarithms log(1 + |x| / s) with s the trusted median size, and at least a tenth of the largest
    such size. The skewness is damped where a unit's effects vary less than a tenth of the usual effect of its group.

    References:
        Resample ablation: Chan et al. 2022, "Causal scrubbing". Interchange: Geiger et al. 2021, arXiv 2106.02997.
    """

    units: str | tuple[str, ...] = "auto"
    draws: int = 12
    classes: int = 16
    target: Target | Readout = field(default_factory=TopMargin)

    def __post_init__(self) -> None:
        require_options(self)
        if self.draws < 2 or self.classes < 1:
            raise FitError(f"draws={self.draws}, classes={self.classes}", needed="at least 2 draws and 1 class")

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedDonorMoments:
        """Draw the donors, note their classes, and take the columns' units from some of the trusted inputs.

        Raises:
            FitError: when the trusted inputs are too few, or the units do not exist.
        """
        require_inputs(trusted)
        donors = Donors.draw(trusted, self.draws, seed)
        found = groups(model, trusted, self.units)
        if any(group.name.startswith("neurons") for group in found):
            raise FitError("a run for every neuron is too much", tries=["units='layers'", "units='mlps'"])
        some = sample(trusted, seed, donors.inputs.digests)
        batch = donor_batch(model, donors)
        logits = in_stacks(model, batch, lambda part: {"": model.plain.logits(part)})[""]
        own = tuple(logits.argmax(-1).tolist())
        wanted = _frequent(model, some, own, self.classes)
        longest = int(trusted.lengths.max()) if trusted.tokens else 0
        raw = FittedDonorMoments(self, model, donors, found, longest, own, wanted, Scales.unknown())
        return replace(raw, scales=with_floors(Scales.of(raw.reduced(some)), _kind))

    def restore(self, model: OpenModel, state: State) -> FittedDonorMoments:
        """The fitted signature that wrote ``state``."""
        fields = {key.removeprefix("donors:"): v for key, v in state.tensors.items() if key.startswith("donors:")}
        data = state.data
        donors, found = Donors.unpack(fields, data["donors"]), groups_from_data(data["groups"], state.tensors)
        own, wanted = (tuple(int(c) for c in data[name]) for name in ("donor_classes", "classes"))
        scales = Scales.restore(state)
        return FittedDonorMoments(self, model, donors, found, int(data["longest"]), own, wanted, scales)


@dataclass(frozen=True, eq=False)
class FittedDonorMoments:
    """Donor moments on one model.

    Attributes:
        spec: what was fitted.
        model: the opened model.
        donors: the trusted donors.
        groups: the units.
        longest: tokens of the longest trusted input; columns of positions before that are added up.
        donor_classes: the model's answer on every donor, the spare last.
        classes: those whose response is kept.
        scales: the columns and their units.
    """

    spec: DonorMoments
    model: OpenModel
    donors: Donors
    groups: tuple[Group, ...]
    longest: int
    donor_classes: tuple[int, ...]
    classes: tuple[int, ...]
    scales: Scales

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the numbers are."""
        return self.scales.columns

    @property
    def donor_digests(self) -> tuple[str, ...]:
        """Contents of the donors, which the reference leaves out."""
        return self.donors.inputs.digests

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) moments; one run of the model per input, unit and donor, stacked."""
        return self.scales.apply(self.model.inputs(inputs), self.reduced)

    def state(self) -> State:
        """The donors, their classes, the units, and the columns with their units."""
        fields, donors = self.donors.pack()
        masks, rows = groups_to_data(self.groups)
        data = {"donors": donors, "groups": rows, "longest": self.longest}
        data |= {"donor_classes": list(self.donor_classes), "classes": list(self.classes)}
        return self.scales.save(State({**masks, **{f"donors:{key}": value for key, value in fields.items()}}, data))

    def reduced(self, inputs: Inputs) -> Reduced:
        """The columns in their own units: the target's and its square, and the skewness, which has none."""
        resampler = Resampler.of(self.model, self.donors, as_target(self.spec.target), self.groups)
        which = torch.as_tensor(self.donors.of(inputs))
        parts = []
        with self.model.quiet():
            tables = unit_tables(resampler, inputs, which, self.groups, self._statistics)
            for group in self.groups:
                units = tuple(f"@-{i + 1}" for i in range(self.longest)) if group.ragged else group.names
                sites = tuple(map(str, group.sites)) * (len(units) if group.ragged else 1)
                for name, values in tables[group.name].items():
                    parts.append(by_place(f"{group.name} {name}", values, units, sites, ragged=group.ragged))
        return join(parts)

    def _statistics(self, effects: Effects, which: Tensor) -> dict[str, Tensor]:
        """Name -> (batch, units), from the effects (batch, units, donors)."""
        change = effects.change.double()
        found = moments(change, _DAMPING * (change**2).nanmean((1, 2)))
        own = torch.tensor(self.donor_classes)[which]
        for label in self.classes:
            member = own == label
            member = torch.where(member.any(1, keepdim=True), member, True)[:, None, :].double()
            found[f"of class {label}"] = (change * member).sum(-1) / member.sum(-1)
        return found


def moments(values: Tensor, damping: Tensor) -> dict[str, Tensor]:
    """Mean, variance, skewness, minimum and maximum over the last axis of (batch, units, donors).

    Args:
        values: effects, NaN where an input has no such unit.
        damping: (batch,) variance next to which one is mostly rounding; the skewness is relative to the sum of both.
    """
    mean = values.mean(-1)
    apart = values - mean[..., None]
    variance = (apart**2).mean(-1)
    cubed = (variance + damping[:, None]) ** 1.5
    skew = torch.where(cubed == 0, cubed, (apart**3).mean(-1) / cubed)
    return {"mean": mean, "variance": variance, "skew": skew, "min": values.amin(-1), "max": values.amax(-1)}


def _kind(column: Column) -> str:
    """What a column is in units of: the target, its square, or nothing."""
    name = column.block.removesuffix(" by place").split()[-1]
    return name if name in ("variance", "skew") else "change"


def _frequent(model: OpenModel, some: Inputs, own: Sequence[int], most: int) -> tuple[int, ...]:
    """Classes of donors, the most frequent on trusted inputs first."""
    counts = Counter(dict.fromkeys(own, 0))
    for batch in model.batches(some):
        counts.update(label for label in model.logits(batch).argmax(-1).tolist() if label in counts)
    return tuple(sorted(counts, key=lambda label: (-counts[label], label))[:most])
