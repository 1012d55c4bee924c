"""Attribution patching: the first-order effect of moving every unit to a baseline, from one backward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.signatures.attributions import (
    Attributor,
    flat,
    places_from_data,
    places_of,
    places_to_data,
    sums,
    unit_columns,
    unit_values,
)
from causalmad.signatures.base import (
    Column,
    Signatures,
    State,
    columns_from_data,
    columns_to_data,
    require_inputs,
    signatures,
)
from causalmad.signatures.baselines import KINDS, Baseline, parts
from causalmad.signatures.columns import Reduced, join, scales_of, signed_log
from causalmad.signatures.scaled import sample
from causalmad.signatures.units import Group, groups, groups_from_data, groups_to_data
from causalmad.sites import Place
from causalmad.targets import Divergence, Readout, Target, TopMargin, as_target


@dataclass(frozen=True)
class AttributionPatching:
    """What each unit contributes to the output, to first order: gradient times (clean minus baseline).

    Args:
        units: ``blocks``, ``positions``, ``residual``, ``heads``, ``mlps``, ``neurons``, ``layers``, or several of
            them; ``auto`` takes the blocks where the data declares them, otherwise the positions, and the heads where
            there are any.
        target: the scalar that is attributed, by default the margin of the model's own answer.
        baseline: ``zero``; the trusted ``mean``; ``donors`` (averaged over trusted inputs, aligned at the last token;
            an input that is itself a donor uses a spare); ``positions``, the trusted mean at the same distance from the
            last token, and the mean over all tokens where no trusted input is as long (inputs that are no tokens have a
            mean of their own for every entry already, so that this is ``mean``); or ``components``: from the clean
            activation, only what it has along the leading principal components of the trusted activations at its place
            is moved to the trusted mean (of a head, the components of its own features; of an input that is no tokens,
            those of the whole input).
        steps: 1 takes the gradient at the clean input; more average it along the straight line from the baseline to the
            clean values of each place (integrated gradients, midpoint rule), so that the contributions of a place sum
            to the difference that moving the whole place to the baseline makes.
        normalise: divide by the sum of absolute contributions, and keep its logarithm as a column of its own, since
            shares say where an output comes from whatever its size.
        log: signed logarithm of the columns, log(1 + |x| / s) with s the trusted median size: heavy tails otherwise
            dominate every distance.
        donors: how many donors, for ``baseline="donors"``.
        components: how many principal components, for ``baseline="components"``, of about 4096 trusted tokens (or
            inputs, where they are no tokens); fewer where the activations vary in fewer directions.

    Columns are, for every unit, the signed sum and the sum of absolute values over its entries, in units of the target.

    References:
        Nanda 2023, "Attribution patching"; Syed et al. 2023, arXiv 2310.10348. Integrated gradients: Sundararajan et
        al. 2017, arXiv 1703.01365.
    """

    units: str | tuple[str, ...] = "auto"
    target: Target | Readout = field(default_factory=TopMargin)
    baseline: Literal["mean", "zero", "donors", "positions", "components"] = "mean"
    steps: int = 1
    normalise: bool = True
    log: bool = True
    donors: int = 4
    components: int = 10

    def __post_init__(self) -> None:
        require_options(self)
        if self.baseline not in KINDS:
            raise FitError(f"baseline={self.baseline!r}", needed=" or ".join(map(repr, KINDS)))
        if self.steps < 1 or self.donors < 1 or self.components < 1:
            counts = f"steps={self.steps}, donors={self.donors}, components={self.components}"
            raise FitError(counts, needed="at least 1 of each")
        if isinstance(self.target, Divergence) and self.steps == 1:
            raise FitError(
                "the divergence from the clean output has no slope at the clean input, so one step sees nothing",
                tries=["steps=8", "target=TopMargin()"],
            )

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedAttributionPatching:
        """Take the baseline and the columns' units from the trusted inputs.

        Raises:
            FitError: when the units do not exist, or the trusted inputs are too few for donors.
        """
        require_inputs(trusted)
        found = groups(model, trusted, self.units)
        places = places_of(model, trusted, found)
        baseline = Baseline.fit(
            model,
            trusted,
            self.baseline,
            parts(found, places),
            donors=self.donors,
            components=self.components,
            seed=seed,
        )
        longest = int(trusted.lengths.max()) if trusted.tokens else 0
        raw = FittedAttributionPatching(self, model, found, places, baseline, longest, (), np.ones(0))
        reduced = raw.reduced(sample(trusted, seed, raw.donor_digests))
        scales = scales_of(reduced.values)
        return FittedAttributionPatching(self, model, found, places, baseline, longest, reduced.columns, scales)

    def restore(self, model: OpenModel, state: State) -> FittedAttributionPatching:
        """The fitted signature that wrote ``state``."""
        tensors, data = dict(state.tensors), state.data
        scales = tensors.pop("scales").numpy()
        found = groups_from_data(data["groups"], tensors)
        places = places_from_data(data["places"], found)
        baseline = Baseline.unpack(model, tensors, data["donors"], flat(places))
        columns = columns_from_data(data["columns"])
        return FittedAttributionPatching(self, model, found, places, baseline, int(data["longest"]), columns, scales)


@dataclass(frozen=True, eq=False)
class FittedAttributionPatching:
    """Attribution patching on one model, with its baseline."""

    spec: AttributionPatching
    model: OpenModel
    groups: tuple[Group, ...]
    places: dict[str, tuple[Place, ...]]
    baseline: Baseline
    longest: int
    columns: tuple[Column, ...]
    scales: npt.NDArray[np.float64]

    @property
    def donor_digests(self) -> tuple[str, ...]:
        """Contents of the donors, which the reference leaves out."""
        return self.baseline.donors.inputs.digests if self.baseline.donors else ()

    @cached_property
    def attributor(self) -> Attributor:
        """What computes the contributions."""
        target = as_target(self.spec.target)
        return Attributor(self.model, target, self.baseline, flat(self.places), self.spec.steps)

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) contributions; one forward and one backward pass (times steps and places when there are steps)."""
        known = self.model.inputs(inputs)
        if not len(known):
            return signatures(known, self.columns, np.empty((0, len(self.columns))))
        values = self.reduced(known).values
        return signatures(known, self.columns, signed_log(values, self.scales) if self.spec.log else values)

    def reduced(self, inputs: Inputs) -> Reduced:
        """The columns in units of the target (or as shares of it)."""
        tables = self._sums(inputs)
        divisor = np.ones((len(inputs), 1))
        if self.spec.normalise:
            total = np.nansum(np.concatenate([v for (_, s), v in tables.items() if s == "size"], axis=1), axis=1)
            divisor = np.where(total > 0, total, 1.0)[:, None]
        # With `log` every column becomes a logarithm at the end, this one included.
        norms = [divisor if self.spec.log else np.log(divisor)] if self.spec.normalise else []
        known = {group.name: group for group in self.groups}
        if self.columns:
            parts = [unit_values(known[name], values / divisor, self.longest) for (name, _), values in tables.items()]
            return Reduced(self.columns, np.concatenate([*parts, *norms], axis=1))
        found = [
            unit_columns(known[name], f"{name} {kind}", values / divisor, self.longest)
            for (name, kind), values in tables.items()
        ]
        return join([*found, *(Reduced((Column("log norm", block="norm"),), norm) for norm in norms)])

    def state(self) -> State:
        """The baseline, the groups, the columns and their units."""
        masks, rows = groups_to_data(self.groups)
        tensors = {**masks, "scales": torch.from_numpy(self.scales)}
        own, donors = self.baseline.pack(flat(self.places))
        data = {"groups": rows, "places": places_to_data(self.places), "donors": donors, "longest": self.longest}
        return State({**tensors, **own}, {**data, "columns": columns_to_data(self.columns)})

    def _sums(self, inputs: Inputs) -> dict[tuple[str, str], npt.NDArray[np.float64]]:
        """(group, "sum" or "size") -> (n, units) signed and absolute sums, NaN where an input has no such unit."""
        donors = self.baseline.donors
        which = None if donors is None else torch.as_tensor(donors.of(inputs))

        def contribute(batch: Batch) -> dict[Place, Tensor]:
            chosen = None if which is None else which[torch.as_tensor(batch.rows)].to(batch.main.device)
            return self.attributor.contributions(batch, chosen)

        return sums(self.model, inputs, self.groups, self.places, contribute)
