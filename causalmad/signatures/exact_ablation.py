"""Exact ablation: what each head does at each position, and what two of them do together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.hypotheses import Donors
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.signatures.base import Column, Signatures, State, require_inputs
from causalmad.signatures.columns import Reduced, by_place, join
from causalmad.signatures.effects import Effects, Resampler, Unit, unit_tables
from causalmad.signatures.floors import with_floors
from causalmad.signatures.scaled import Scales, sample
from causalmad.signatures.units import Group, by_position, groups, groups_from_data, groups_to_data
from causalmad.targets import Readout, Target, TopMargin, as_target

Floats = npt.NDArray[np.float64]
_KINDS = ("kl", "margin")


@dataclass(frozen=True)
class ExactAblation:
    """What each head does at each position: the exact effect of taking it from a trusted donor, place by place.

    Every unit is replaced on its own by the values of each donor, and the model is run again. Unlike the resampling
    profile it keeps heads at single positions apart, never sorts, and can look at two units at once: a part that
    another one stands in for shows no effect alone.

    Args:
        units: ``heads``, ``mlps``, ``residual``, ``positions``, ``blocks``, ``layers``, or several of them; ``auto`` is
            the heads where the model has them, otherwise the blocks (or positions) of the input and four stretches of
            every hidden layer.
        by_position: whether heads and MLPs are replaced at one token position at a time, counted from the last real
            token, or as a whole. Positions cost a run for each. Those of a language model's last block are always
            replaced as a whole: from there only the last token reaches the logits that are read.
        donors: how many trusted donors, the same for all inputs; an input that is itself a donor uses a spare.
        pairs: whether to add, for every pair of the strongest units (by the trusted mean divergence), the effect of
            replacing both minus the effects of replacing each: zero where the two have nothing to do with each other.
        most: how many of the strongest units are paired.
        target: the scalar whose change is measured, by default the margin of the model's own answer.

    Columns are the KL divergence from the clean output (nats) and the signed change of the target, averaged over the
    donors, as signed logarithms log(1 + |effect| / s) with s the trusted median size, and at least a tenth of the
    largest such size.

    References:
        Resample ablation: Chan et al. 2022, "Causal scrubbing". Backup of ablated parts: McGrath et al. 2023, "The
        Hydra effect", arXiv 2307.15771.
    """

    units: str | tuple[str, ...] = "auto"
    by_position: bool = True
    donors: int = 4
    pairs: bool = False
    most: int = 6
    target: Target | Readout = field(default_factory=TopMargin)

    def __post_init__(self) -> None:
        require_options(self)
        if self.donors < 1 or self.most < 2:
            raise FitError(f"donors={self.donors}, most={self.most}", needed="at least 1 donor, and 2 units to pair")

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedExactAblation:
        """Draw the donors, choose the pairs, and take the columns' units from some of the trusted inputs.

        Raises:
            FitError: when the trusted inputs are too few, or the units do not exist.
        """
        require_inputs(trusted)
        donors = Donors.draw(trusted, self.donors, seed)
        found = self._groups(model, trusted)
        longest = int(trusted.lengths.max()) if trusted.tokens else 0
        raw = FittedExactAblation(self, model, donors, found, (), longest, Scales.unknown())
        some = sample(trusted, seed, donors.inputs.digests)
        if self.pairs:
            raw = replace(raw, pairs=_strongest(raw, some, self.most))
        return replace(raw, scales=with_floors(Scales.of(raw.reduced(some)), _kind))

    def restore(self, model: OpenModel, state: State) -> FittedExactAblation:
        """The fitted signature that wrote ``state``."""
        fields = {key.removeprefix("donors:"): v for key, v in state.tensors.items() if key.startswith("donors:")}
        donors = Donors.unpack(fields, state.data["donors"])
        found = groups_from_data(state.data["groups"], state.tensors)
        pairs = tuple(tuple((found[g], int(i)) for g, i in pair) for pair in state.data["pairs"])
        longest = int(state.data["longest"])
        return FittedExactAblation(self, model, donors, found, pairs, longest, Scales.restore(state))  # type: ignore[arg-type]

    def _groups(self, model: OpenModel, trusted: Inputs) -> tuple[Group, ...]:
        units: str | Sequence[str] = self.units
        if units == "auto":
            known = model.architecture is not None and model.architecture.heads
            units = "heads" if known else ("blocks" if trusted.blocks else "positions", "layers")
        found = groups(model, trusted, units)
        if any(group.name.startswith("neurons") for group in found):
            raise FitError("a run for every neuron is too much", tries=["units='layers'", "units='mlps'"])
        apart = self.by_position and trusted.tokens
        split = [_apart(model, g) if apart and g.name in ("heads", "mlps") else (g,) for g in found]
        return tuple(group for parts in split for group in parts)


@dataclass(frozen=True, eq=False)
class FittedExactAblation:
    """Exact ablation on one model with its donors.

    Attributes:
        spec: what was fitted.
        model: the opened model.
        donors: the trusted donors.
        groups: the units.
        pairs: the units that are replaced together.
        longest: tokens of the longest trusted input; effects at positions before that are added up.
        scales: the columns and their units.
    """

    spec: ExactAblation
    model: OpenModel
    donors: Donors
    groups: tuple[Group, ...]
    pairs: tuple[tuple[Unit, Unit], ...]
    longest: int
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
        """(n, d) effects; one run of the model per input, donor, and unit or pair, stacked."""
        return self.scales.apply(self.model.inputs(inputs), self.reduced)

    def state(self) -> State:
        """The donors, the units and pairs, and the columns with their units."""
        fields, donors = self.donors.pack()
        masks, rows = groups_to_data(self.groups)
        places = {group.name: i for i, group in enumerate(self.groups)}
        pairs = [[[places[group.name], unit] for group, unit in pair] for pair in self.pairs]
        data = {"donors": donors, "groups": rows, "pairs": pairs, "longest": self.longest}
        return self.scales.save(State({**masks, **{f"donors:{key}": value for key, value in fields.items()}}, data))

    def reduced(self, inputs: Inputs) -> Reduced:
        """The columns in their own units: nats of divergence, and the target's."""
        resampler = Resampler.of(self.model, self.donors, as_target(self.spec.target), self.groups)
        which = torch.as_tensor(self.donors.of(inputs))
        with self.model.quiet():
            found = unit_tables(resampler, inputs, which, self.groups, over_donors)
            parts = [self._columns(group, kind, found[group.name][kind]) for group in self.groups for kind in _KINDS]
            if self.pairs:
                parts.append(self._interactions(resampler, inputs, which, found))
        return join(parts)

    def unit_name(self, unit: Unit, kind: str = "") -> str:
        """The name of a single unit's column, or of the unit itself without a kind of effect."""
        group, index = unit
        place = f"@-{index + 1}" if group.ragged else group.names[index]
        return " ".join(filter(None, (group.name, kind, place)))

    def _columns(self, group: Group, kind: str, effects: Floats) -> Reduced:
        units = tuple(f"@-{i + 1}" for i in range(self.longest)) if group.ragged else group.names
        sites = tuple(map(str, group.sites)) * (len(units) if group.ragged else 1)
        return by_place(f"{group.name} {kind}", effects, units, sites, ragged=group.ragged)

    def _interactions(
        self, resampler: Resampler, inputs: Inputs, which: torch.Tensor, found: dict[str, dict[str, Floats]]
    ) -> Reduced:
        """Effects of pairs minus those of their units; none where an input lacks one of the two."""
        tables = {kind: np.zeros((len(inputs), len(self.pairs))) for kind in _KINDS}
        for batch in self.model.batches(inputs):
            joint = over_donors(resampler.joint(batch, which[torch.as_tensor(batch.rows)], self.pairs))
            for kind, values in joint.items():
                tables[kind][batch.rows] = values.numpy()
        parts = []
        for kind, table in tables.items():
            for column, pair in enumerate(self.pairs):
                for group, unit in pair:
                    single = found[group.name][kind]
                    # A position that no input here has.
                    table[:, column] -= single[:, unit] if unit < single.shape[1] else np.nan
            names = [" x ".join(self.unit_name(unit) for unit in pair) for pair in self.pairs]
            columns = tuple(Column(f"pair {kind} {name}", unit=name, block=f"pairs {kind}") for name in names)
            parts.append(Reduced(columns, np.nan_to_num(table, nan=0.0)))
        return join(parts)


def over_donors(effects: Effects, _: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Both effects averaged over the donors, (batch, units)."""
    return {"kl": effects.divergence.double().mean(-1), "margin": effects.change.double().mean(-1)}


def _apart(model: OpenModel, group: Group) -> tuple[Group, ...]:
    """Heads or MLPs by position, but those that only the last position leaves: replaced there or whole is the same."""
    known, final = model.architecture, ""
    if known is not None and "logits_to_keep" in model.accepts:  # logits of single positions, and not of a pool
        final = f"{known.path(known.layers - 1)}."
    ends = tuple(site for site in group.sites if final and site.path.startswith(final))
    early = tuple(site for site in group.sites if site not in ends)
    before = by_position(Group(group.name, tuple(map(str, early)), early))
    return (*before, Group(group.name, tuple(map(str, ends)), ends)) if ends else before


def _strongest(fitted: FittedExactAblation, some: Inputs, most: int) -> tuple[tuple[Unit, Unit], ...]:
    """Pairs of the units whose replacement diverges most, on average over trusted inputs."""
    found = fitted.reduced(some)
    sizes = {column.name: float(size) for column, size in zip(found.columns, found.values.mean(0), strict=True)}
    units = [(g, i) for g in fitted.groups for i in range(fitted.longest if g.ragged else len(g.names))]
    units.sort(key=lambda unit: -sizes[fitted.unit_name(unit, "kl")])
    return tuple(combinations(units[:most], 2))


def _kind(column: Column) -> str:
    return column.block.removesuffix(" by place").split()[-1]
