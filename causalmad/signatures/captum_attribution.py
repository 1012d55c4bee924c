"""Captum: any of captum's attributions that is defined for single inputs, in the grammar of units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from causalmad.config import require_options
from causalmad.errors import FitError, SiteError, nearest
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.signatures.attributions import flat, places_from_data, places_of, places_to_data, sums, unit_columns
from causalmad.signatures.base import Column, Signatures, State, columns_from_data, columns_to_data, require_inputs
from causalmad.signatures.base import signatures as checked
from causalmad.signatures.baselines import KINDS, Baseline, parts
from causalmad.signatures.captum_calls import AT_LAYERS, GRADIENTS, METHODS, PERTURBATIONS, Question, attribute
from causalmad.signatures.columns import Reduced, join
from causalmad.signatures.scaled import Scales, sample
from causalmad.signatures.units import Group, groups, groups_from_data, groups_to_data, root
from causalmad.sites import Place
from causalmad.targets import Divergence, Readout, Target, TopMargin, as_target


@dataclass(frozen=True)
class Captum:
    """What each unit contributes, by one of captum's own attribution methods.

    Args:
        method: the name of a class of ``captum.attr``. ``LayerIntegratedGradients`` (along the line from the baseline
            of the unit's own place), ``LayerGradientXActivation``, ``FeatureAblation`` (exact: every unit moved to the
            baseline by itself) and ``ShapleyValueSampling`` (moved in random orders, the same for all inputs) work at
            every place of every model and through every engine. ``LayerConductance``, ``InternalInfluence`` and
            ``LayerDeepLift`` go along a line between *inputs*: they need inputs that are no tokens, and places inside
            the model; they run the plain module, whichever engine is chosen, in a copy that shares its weights.
        units: ``blocks``, ``positions``, ``residual``, ``heads``, ``mlps``, or several of them; ``auto`` takes the
            blocks where the data declares them, otherwise the positions, and the heads where there are any. Also
            ``neurons``, except for perturbations.
        sites: paths, globs or roles to attribute to in place of ``units``, each site being one unit; no positions.
        target: the scalar that is attributed, by default the margin of the model's own answer.
        baseline: what is compared with: ``zero``, ``mean``, ``donors``, ``positions`` or ``components``, as for
            attribution patching; for the methods along a line between inputs it is an input.
        steps: points on the line, for the methods that follow one (midpoint rule).
        samples: orders in which units are moved, for ``ShapleyValueSampling``.
        log: signed logarithm of the columns, log(1 + |x| / s) with s the trusted median size.
        donors: how many donors, for ``baseline="donors"``.

    Columns are, for every unit, the signed sum and the sum of absolute values over its entries, in units of the target;
    for perturbations the signed effect alone.

    Raises:
        FitError: for a method that is none of these, or options that it has no use for.

    References:
        Kokhlikyan et al. 2020, "Captum", arXiv 2009.07896. Integrated gradients: Sundararajan et al. 2017, arXiv
        1703.01365. Conductance: Dhamdhere et al. 2018, arXiv 1805.12233. Internal influence: Leino et al. 2018, arXiv
        1802.03788. DeepLIFT: Shrikumar et al. 2017, arXiv 1704.02685.
    """

    method: str = "LayerIntegratedGradients"
    units: str | tuple[str, ...] = "auto"
    sites: str | tuple[str, ...] = ()
    target: Target | Readout = field(default_factory=TopMargin)
    baseline: Literal["mean", "zero", "donors", "positions", "components"] = "zero"
    steps: int = 8
    samples: int = 4
    log: bool = True
    donors: int = 4

    def __post_init__(self) -> None:
        require_options(self)
        if self.method not in METHODS:
            raise FitError(
                f"no method {self.method!r} here",
                needed="one of captum's that gives every input an attribution of its own, without labels",
                tries=[repr(name) for name in nearest(self.method, METHODS)],
            )
        if self.baseline not in KINDS:
            raise FitError(f"baseline={self.baseline!r}", needed=" or ".join(map(repr, KINDS)))
        if self.sites and self.units != "auto":
            raise FitError(f"sites={self.sites!r} in place of units={self.units!r}", tries=["units='auto'", "sites=()"])
        if self.steps < 1 or self.samples < 1 or self.donors < 1:
            counts = f"steps={self.steps}, samples={self.samples}, donors={self.donors}"
            raise FitError(counts, needed="at least 1 of each")
        if self.method == "LayerGradientXActivation" and self.baseline != "zero":
            raise FitError(
                f"{self.method} compares with zero, not with baseline={self.baseline!r}",
                tries=["baseline='zero'", "AttributionPatching(baseline='mean')"],
            )
        if isinstance(self.target, Divergence) and self.method == "LayerGradientXActivation":
            raise FitError(
                "the divergence from the clean output has no slope at the clean input", tries=["TopMargin()"]
            )

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedCaptum:
        """Find the units, and take the baseline and the columns' units from the trusted inputs.

        Raises:
            FitError: when the units do not exist, or the method has no attribution for them.
            SiteError: when a site does not exist.
        """
        require_inputs(trusted)
        found = _at_sites(model, self.sites) if self.sites else groups(model, trusted, self.units)
        places = places_of(model, trusted, found)
        self._require_sense(model, trusted, found, flat(places))
        wanted = {root(): 1} if self.method in AT_LAYERS else parts(found, places)
        baseline = Baseline.fit(model, trusted, self.baseline, wanted, donors=self.donors, seed=seed)
        longest = int(trusted.lengths.max()) if trusted.tokens else 0
        raw = FittedCaptum(self, model, found, places, baseline, longest, seed, Scales.unknown())
        return replace(raw, scales=Scales.of(raw.reduced(sample(trusted, seed, raw.donor_digests))))

    def restore(self, model: OpenModel, state: State) -> FittedCaptum:
        """The fitted signature that wrote ``state``."""
        data = state.data
        found = groups_from_data(data["groups"], state.tensors)
        places = places_from_data(data["places"], found)
        wanted = (root(),) if self.method in AT_LAYERS else flat(places)
        baseline = Baseline.unpack(model, state.tensors, data["donors"], wanted)
        scales = Scales(columns_from_data(data["columns"]), state.tensors["scales"].numpy())
        return FittedCaptum(self, model, found, places, baseline, int(data["longest"]), int(data["seed"]), scales)

    def _require_sense(
        self, model: OpenModel, trusted: Inputs, found: tuple[Group, ...], at: tuple[Place, ...]
    ) -> None:
        if self.method in PERTURBATIONS and any(group.name.startswith("neurons") for group in found):
            raise FitError("a run for every neuron", tries=["units='mlps'", "method='LayerIntegratedGradients'"])
        if self.method not in AT_LAYERS:
            return
        others = [repr(name) for name in (*GRADIENTS, *PERTURBATIONS)][:3]
        if trusted.tokens:
            raise FitError(
                f"{self.method} follows a line between inputs, and there is none between tokens",
                needed="inputs of real numbers",
                tries=[f"method={name}" for name in others],
            )
        if any(place == root() for place in at):
            raise FitError(
                f"{self.method} attributes to places inside the model, not to parts of its input",
                needed="sites, or units that are sites",
                tries=[f"sites={str(model.sites('layers')[0])!r}", *(f"method={name}" for name in others)],
            )


@dataclass(frozen=True, eq=False)
class FittedCaptum:
    """One of captum's attributions on one model, with its baseline."""

    spec: Captum
    model: OpenModel
    groups: tuple[Group, ...]
    places: dict[str, tuple[Place, ...]]
    baseline: Baseline
    longest: int
    seed: int
    scales: Scales

    @property
    def columns(self) -> tuple[Column, ...]:
        """The contributions."""
        return self.scales.columns

    @property
    def donor_digests(self) -> tuple[str, ...]:
        """Contents of the donors, which the reference leaves out."""
        return self.baseline.donors.inputs.digests if self.baseline.donors else ()

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) contributions; as many runs of the model as the method needs for every place and donor."""
        known = self.model.inputs(inputs)
        if self.spec.log or not len(known):
            return self.scales.apply(known, self.reduced)
        return checked(known, self.columns, self.reduced(known).values)

    def reduced(self, inputs: Inputs) -> Reduced:
        """The columns in units of the target."""
        kinds = ("sum",) if self.spec.method in PERTURBATIONS else ("sum", "size")
        donors = self.baseline.donors
        which = None if donors is None else torch.as_tensor(donors.of(inputs))
        columns = []
        for group in self.groups:
            tables = sums(self.model, inputs, [group], self.places, self._contribute(group, which))
            for kind in kinds:
                columns.append(unit_columns(group, f"{group.name} {kind}", tables[group.name, kind], self.longest))
        return join(columns)

    def state(self) -> State:
        """The baseline, the units, the columns and their scales."""
        masks, rows = groups_to_data(self.groups)
        wanted = (root(),) if self.spec.method in AT_LAYERS else flat(self.places)
        tensors, donors = self.baseline.pack(wanted)
        data = {"groups": rows, "places": places_to_data(self.places), "donors": donors, "longest": self.longest}
        scales = torch.from_numpy(self.scales.sizes)
        written = {**data, "seed": self.seed, "columns": columns_to_data(self.columns)}
        return State({**masks, **tensors, "scales": scales}, written)

    def _contribute(self, group: Group, which: Tensor | None) -> Callable[[Batch], dict[Place, Tensor]]:
        def contribute(batch: Batch) -> dict[Place, Tensor]:
            chosen = None if which is None else which[torch.as_tensor(batch.rows)].to(batch.main.device)
            places = self.places[group.name]
            run = self.model.run(batch, read=[root()] if self.spec.method in AT_LAYERS else places)
            logits = run.logits if run.logits is not None else self.model.logits(batch)
            target = as_target(self.spec.target)
            found = {}
            for place in places:
                clean = run.values[root() if self.spec.method in AT_LAYERS else place]
                bases = self.baseline.each(root() if self.spec.method in AT_LAYERS else place, clean, batch, chosen)
                question = Question(self.model, batch, place, clean, logits, target, group, self.longest)
                each = [attribute(self.spec.method, question, base, self._options) for base in bases]
                found[place] = torch.stack(each).mean(0)
            return found

        return contribute

    @property
    def _options(self) -> dict[str, int]:
        return {"steps": self.spec.steps, "samples": self.spec.samples, "seed": self.seed}


def _at_sites(model: OpenModel, what: str | tuple[str, ...]) -> tuple[Group, ...]:
    sites = model.sites(what)
    placed = [site for site in sites if site.position is not None]
    if placed:
        raise SiteError(f"{placed[0]}: contributions are added up over the tokens", tries=[str(placed[0].at(None))])
    return (Group("sites", tuple(map(str, sites)), sites),)
