"""Resampling profile: what an output depends on, unit by unit, by exact replacement with trusted donors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.hypotheses import Donors
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.signatures.base import (
    Column,
    Signatures,
    State,
    columns_from_data,
    columns_to_data,
    require_inputs,
    signatures,
)
from causalmad.signatures.columns import Reduced, by_place, by_rank, join, scales_of, signed_log, total
from causalmad.signatures.effects import Effects, Resampler, unit_tables
from causalmad.signatures.scaled import sample
from causalmad.signatures.units import Group, groups, groups_from_data, groups_to_data
from causalmad.targets import Readout, Target, TopMargin, as_target


@dataclass(frozen=True)
class ResamplingProfile:
    """What the output depends on: the exact effect of replacing one unit at a time by a trusted donor's.

    For every unit and donor the model is run again with that unit of the input (or that activation) taken from the
    donor; the effect is the KL divergence from the clean output (nats) and the signed change of the target. The same
    donors serve all inputs, so that donor noise is shared; an input that is itself a donor uses a spare.

    Args:
        units: ``blocks`` (named parts of the input), ``positions`` (tokens, patches), ``residual`` (positions of the
            residual stream), ``heads``, ``mlps``, or several of them. ``auto`` takes the blocks where the data declares
            them, otherwise the positions, and the heads where the model has them.
        donors: how many trusted donors.
        target: the scalar whose change is measured, by default the margin of the model's own answer.
        by: ``rank`` sorts the effects, so that units may change places; ``place`` keeps them apart, for anomalies that
            only move which unit matters; ``both`` keeps both, since either form is blind to what the other sees.
        top: how many ranks are kept.

    Columns are the effects' means over the donors, and for each kind of unit and effect one column with the standard
    deviations over the donors, added up over the units; all as signed logarithms, log(1 + |effect| / s) with s the
    median size on trusted inputs.

    References:
        Resample ablation: Chan et al. 2022, "Causal scrubbing". Interchange: Geiger et al. 2021, arXiv 2106.02997.
    """

    units: str | tuple[str, ...] = "auto"
    donors: int = 4
    target: Target | Readout = field(default_factory=TopMargin)
    by: Literal["rank", "place", "both"] = "both"
    top: int = 3

    def __post_init__(self) -> None:
        require_options(self)
        if self.by not in ("rank", "place", "both"):
            raise FitError(f"by={self.by!r}", needed="'rank', 'place' or 'both'")
        if self.donors < 1 or self.top < 1:
            raise FitError(f"donors={self.donors}, top={self.top}", needed="at least 1 of each")

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedResamplingProfile:
        """Draw the donors, name the columns, and take the columns' units from some of the trusted inputs.

        Raises:
            FitError: when the trusted inputs are too few, or the units do not exist.
        """
        require_inputs(trusted)
        donors = Donors.draw(trusted, self.donors, seed)
        found = groups(model, trusted, self.units)
        if any(group.name.startswith("neurons") for group in found):
            raise FitError(
                "a run for every neuron is not what a profile is for",
                tries=["units='mlps'", "AttributionPatching('neurons')"],
            )
        longest = int(trusted.lengths.max()) if trusted.tokens else 0
        raw = FittedResamplingProfile(self, model, donors, found, longest, (), np.ones(0))
        reduced = raw.reduced(sample(trusted, seed, donors.inputs.digests))
        return FittedResamplingProfile(self, model, donors, found, longest, reduced.columns, scales_of(reduced.values))

    def restore(self, model: OpenModel, state: State) -> FittedResamplingProfile:
        """The fitted signature that wrote ``state``."""
        tensors = dict(state.tensors)
        scales = tensors.pop("scales").numpy()
        fields = {key.removeprefix("donors:"): value for key, value in tensors.items() if key.startswith("donors:")}
        donors = Donors.unpack(fields, state.data["donors"])
        columns = columns_from_data(state.data["columns"])
        found = groups_from_data(state.data["groups"], tensors)
        return FittedResamplingProfile(self, model, donors, found, int(state.data["longest"]), columns, scales)


@dataclass(frozen=True, eq=False)
class FittedResamplingProfile:
    """A resampling profile of one model with its donors."""

    spec: ResamplingProfile
    model: OpenModel
    donors: Donors
    groups: tuple[Group, ...]
    longest: int
    columns: tuple[Column, ...]
    scales: npt.NDArray[np.float64]

    @property
    def donor_digests(self) -> tuple[str, ...]:
        """Contents of the donors, which the reference leaves out."""
        return self.donors.inputs.digests

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) profile; one run of the model per input, unit and donor, stacked."""
        known = self.model.inputs(inputs)
        if not len(known):
            return signatures(known, self.columns, np.empty((0, len(self.columns))))
        return signatures(known, self.columns, signed_log(self.reduced(known).values, self.scales))

    def state(self) -> State:
        """The donors, the columns and their units."""
        fields, donors = self.donors.pack()
        masks, rows = groups_to_data(self.groups)
        tensors = {**masks, **{f"donors:{key}": value for key, value in fields.items()}}
        tensors["scales"] = torch.from_numpy(self.scales)
        data = {"donors": donors, "groups": rows, "longest": self.longest}
        return State(tensors, {**data, "columns": columns_to_data(self.columns)})

    def reduced(self, inputs: Inputs) -> Reduced:
        """The columns in their own units: nats of divergence, and the target's."""
        which = torch.as_tensor(self.donors.of(inputs))
        resampler = Resampler.of(self.model, self.donors, as_target(self.spec.target), self.groups)
        parts = []
        with self.model.quiet():
            tables = unit_tables(resampler, inputs, which, self.groups, _over_donors)
            for group in self.groups:
                for name, values in tables[group.name].items():
                    # The spread of a few draws is mostly noise: it is kept as a whole, not for every unit.
                    whole = name.endswith(" sd")
                    title = f"{group.name} {name}"
                    parts.append(total(title, values) if whole else self._columns(title, values, group))
        return join(parts)

    def _columns(self, name: str, effects: npt.NDArray[np.float64], group: Group) -> Reduced:
        forms = []
        if self.spec.by in ("rank", "both"):
            # By place the last position has its own column already.
            forms.append(by_rank(name, effects, self.spec.top, last=group.ragged and self.spec.by == "rank"))
        if self.spec.by in ("place", "both"):
            units = tuple(f"@-{i + 1}" for i in range(self.longest)) if group.ragged else group.names
            sites = tuple(map(str, group.sites)) * (len(units) if group.ragged else 1)
            forms.append(by_place(name, effects, units, sites, ragged=group.ragged))
        return join(forms)


def _over_donors(effects: Effects, _: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean and standard deviation over the donors of both effects."""
    found = {}
    for name, values in (("kl", effects.divergence), ("margin", effects.change)):
        found[name] = values.double().mean(-1)
        found[f"{name} sd"] = values.double().std(-1, correction=0)
    return found
