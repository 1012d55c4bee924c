"""Probe shift: what moves the output that does not move a probe on the way to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.signatures.activations import Activations, features
from causalmad.signatures.attributions import (
    flat,
    places_from_data,
    places_of,
    places_to_data,
    sums,
    unit_columns,
)
from causalmad.signatures.base import Column, Signatures, State, require_inputs
from causalmad.signatures.baselines import Baseline, parts
from causalmad.signatures.columns import Reduced, join
from causalmad.signatures.probes import Ints, Probes, log_odds
from causalmad.signatures.scaled import Scales, sample
from causalmad.signatures.units import Group, groups, groups_from_data, groups_to_data
from causalmad.sites import Place, Site
from causalmad.targets import TopMargin


@dataclass(frozen=True)
class ProbeShift:
    """Attribution to the model's output minus attribution to a linear probe of a layer, for all units before it.

    A probe that tells on trusted inputs what the model will answer moves with the output. Where units move the output
    but not the probe, or the reverse, the answer does not come about as it does on trusted inputs.

    Args:
        units: ``blocks``, ``positions``, ``residual``, ``heads``, ``mlps``, ``neurons``, ``layers`` or several of them;
            ``auto`` takes the blocks where the data declares them, otherwise the positions, and the heads where there
            are any.
        sites: where the probes are, one at each; ``auto`` is the residual stream after every block of a known
            architecture, and the output of every nonlinear layer of any other module.
        positions: the token at which the probes read.
        baseline: the trusted ``mean`` of each activation, or ``zero``.
        classes: how many of the most frequent trusted answers the probes tell apart.

    Columns are, for every probe and every unit that is computed before it, the signed sum and the sum of absolute
    values, over the unit's entries, of (gradient of the model's margin minus gradient of the probe's margin) times
    (clean minus baseline): both gradients are taken at the same tensor. In nats, on a signed-log scale. Both margins
    are of the model's own answer. Probes are those of :class:`ProbeLogits`: a trusted input is attributed under the
    probe that was fitted without it.

    References:
        Mechanistic anomaly detection research update, EleutherAI 2024 ("probe shift"); Mallen et al. 2023,
        arXiv 2312.01037.
    """

    units: str | tuple[str, ...] = "auto"
    sites: str | tuple[str, ...] = "auto"
    positions: int | str = -1
    baseline: Literal["mean", "zero"] = "mean"
    classes: int = 16

    def __post_init__(self) -> None:
        require_options(self)
        if self.baseline not in ("mean", "zero") or self.classes < 1:
            raise FitError(
                f"baseline={self.baseline!r}, classes={self.classes}", needed="'mean' or 'zero', and at least 1 class"
            )

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedProbeShift:
        """Fit the probes, find which units come before each, and take the baseline and the columns' units.

        Raises:
            FitError: when the units do not exist, or no unit comes before any probe, or the trusted inputs have fewer
                than two answers that occur at least twice each.
            SiteError: when a site does not exist.
        """
        require_inputs(trusted)
        found = groups(model, trusted, self.units)
        places = places_of(model, trusted, found)
        reader = Activations(self.sites, self.positions)
        probes = Probes.fit(model, trusted, reader, self.classes, seed)
        before = _before(model, trusted, found, places, probes.layers.sites)
        baseline = Baseline.fit(model, trusted, self.baseline, parts(found, places), seed=seed)
        longest = int(trusted.lengths.max()) if trusted.tokens else 0
        raw = FittedProbeShift(self, model, found, places, probes, before, baseline, longest, Scales.unknown())
        return replace(raw, scales=Scales.of(raw.reduced(sample(trusted, seed))))

    def restore(self, model: OpenModel, state: State) -> FittedProbeShift:
        """The fitted signature that wrote ``state``."""
        tensors, data = state.tensors, state.data
        found = groups_from_data(data["groups"], tensors)
        places = places_from_data(data["places"], found)
        baseline = Baseline.unpack(model, tensors, None, flat(places))
        before = tuple({str(name): tuple(map(int, units)) for name, units in row} for row in data["before"])
        probes, longest = Probes.restore(model, state), int(data["longest"])
        return FittedProbeShift(self, model, found, places, probes, before, baseline, longest, Scales.restore(state))


@dataclass(frozen=True, eq=False)
class FittedProbeShift:
    """Probe shift of one model.

    Attributes:
        spec: what was fitted.
        model: the model.
        groups: the units.
        places: name of a group -> where its units are.
        probes: one per site.
        before: per probe, name of a group -> which of its units are computed before the probe; only groups with any.
        baseline: what activations are compared with.
        longest: tokens of the longest trusted input.
        scales: the columns and their units.
    """

    spec: ProbeShift
    model: OpenModel
    groups: tuple[Group, ...]
    places: dict[str, tuple[Place, ...]]
    probes: Probes
    before: tuple[dict[str, tuple[int, ...]], ...]
    baseline: Baseline
    longest: int
    scales: Scales

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the numbers are."""
        return self.scales.columns

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) shifts; a forward and a backward pass for the model and for every probe."""
        return self.scales.apply(self.model.inputs(inputs), self.reduced)

    def state(self) -> State:
        """The probes, the baseline, the units and the columns."""
        masks, rows = groups_to_data(self.groups)
        own, _ = self.baseline.pack(flat(self.places))
        probes = self.probes.state()
        before = [[[name, list(units)] for name, units in row.items()] for row in self.before]
        data = {"groups": rows, "places": places_to_data(self.places), "before": before, "longest": self.longest}
        return self.scales.save(State({**probes.tensors, **masks, **own}, {**probes.data, **data}))

    def reduced(self, inputs: Inputs) -> Reduced:
        """The columns in nats."""
        which = self.probes.which(inputs)
        found = []
        for layer, units in enumerate(self.before):
            if units:
                found += self._shifts(inputs, layer, [_only(group, units) for group in self.groups], which)
        return join(found)

    def _shifts(self, inputs: Inputs, layer: int, found: Sequence[Group | None], which: Ints) -> list[Reduced]:
        """Sums and sizes of all units before one probe."""
        some = [group for group in found if group is not None]
        places = places_of(self.model, inputs, some)
        wanted = flat(places)
        site = self.probes.layers.sites[layer]
        target = TopMargin()

        def contribute(batch: Batch) -> dict[Place, Tensor]:
            run = self.model.run(batch, read=wanted, target=target)
            logits = run.logits if run.logits is not None else self.model.logits(batch)
            slopes = self._probe_slopes(batch, layer, wanted, self.probes.answers(logits), which[batch.rows])
            shifts = {}
            for place in wanted:
                clean = run.values[place]
                (base,) = self.baseline.each(place, clean, batch, None)
                shifts[place] = (run.grads[place] - slopes[place]) * (clean - base)
            return shifts

        names = {group.name: group for group in some}
        return [
            unit_columns(names[name], f"{site} {name} {kind}", values, self.longest)
            for (name, kind), values in sums(self.model, inputs, some, places, contribute).items()
        ]

    def _probe_slopes(
        self, batch: Batch, layer: int, wanted: Sequence[Place], answers: Tensor, which: Ints
    ) -> dict[Place, Tensor]:
        """Place -> gradient of the probe's margin, which is a function of an activation and not of the logits."""
        site = self.probes.layers.sites[layer]
        seen: list[Tensor] = []

        def note(value: Tensor) -> Tensor:
            seen.append(value.clone())  # a later operation in place must not change what the probe reads
            return value

        def read(_: Tensor) -> Tensor:
            return log_odds(self.probes.read(layer, features(seen[-1], site, batch), which), answers)

        return dict(self.model.run(batch, read=wanted, edits={site.place: note}, target=read).grads)


def _only(group: Group, units: dict[str, tuple[int, ...]]) -> Group | None:
    """A group with some of its units, or None."""
    if group.name not in units:
        return None
    if len(group.sites) < 2:
        return group
    rows = units[group.name]
    return replace(group, names=tuple(group.names[i] for i in rows), sites=tuple(group.sites[i] for i in rows))


def _before(
    model: OpenModel,
    trusted: Inputs,
    found: Sequence[Group],
    places: dict[str, tuple[Place, ...]],
    probes: Sequence[Site],
) -> tuple[dict[str, tuple[int, ...]], ...]:
    """Per probe, name of a group -> its units that one run of the model reaches before it does the probe."""
    order: list[Place] = []

    def noting(place: Place) -> Any:
        def note(value: Tensor) -> Tensor:
            order.append(place)
            return value

        return note

    every = dict.fromkeys([*flat(places), *(site.place for site in probes)])
    (batch,) = model.batches(trusted[:1])
    model.run(batch, edits={place: noting(place) for place in every})
    rank = {place: i for i, place in reversed(list(enumerate(order)))}
    rows = []
    for probe in probes:
        row = {}
        for group in found:
            where = [site.place for site in group.sites] or list(places[group.name])
            units = tuple(i for i, place in enumerate(where) if rank[place] < rank[probe.place])
            if units:
                row[group.name] = units
        rows.append(row)
    if not any(rows):
        raise FitError(
            f"no unit is computed before any of {len(probes)} probes, the last at {probes[-1]}",
            tries=["units='positions'", "sites= later in the model"],
        )
    return tuple(rows)
