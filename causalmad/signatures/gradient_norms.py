"""Gradient norms: how steeply the output hangs on every unit, whatever it is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.models.last_position import LastPosition
from causalmad.signatures.attributions import flat, places_from_data, places_of, places_to_data, sums, unit_columns
from causalmad.signatures.base import Column, Signatures, State, require_inputs
from causalmad.signatures.columns import Reduced, join
from causalmad.signatures.scaled import Scales, sample
from causalmad.signatures.units import Group, groups, groups_from_data, groups_to_data
from causalmad.sites import Place
from causalmad.targets import Divergence, Readout, Target, TopMargin, as_target


@dataclass(frozen=True)
class GradientNorms:
    """How steeply the output depends on each unit: the norm of the target's gradient there.

    For every unit the Euclidean norm of the gradient over all of the unit's entries (over all real tokens, where it is
    a head or an MLP), in units of the target per unit of the activation. Unlike a contribution it needs no baseline,
    and also sees what an input could do and does not.

    Args:
        units: ``blocks``, ``positions``, ``residual``, ``heads``, ``mlps``, ``neurons``, ``layers``, or several of
            them; ``auto`` takes the blocks where the data declares them, otherwise the positions, and the heads where
            there are any.
        target: the scalar whose gradient is taken, by default the margin of the model's own answer, which unlike a
            probability does not saturate.

    Columns are logarithms, log(1 + norm / s) with s the trusted median norm of the column.

    Raises:
        FitError: for the divergence from the clean output, which has no slope there.

    References:
        Simonyan, Vedaldi, Zisserman 2013, arXiv 1312.6034.
    """

    units: str | tuple[str, ...] = "auto"
    target: Target | Readout = field(default_factory=TopMargin)

    def __post_init__(self) -> None:
        require_options(self)
        if isinstance(self.target, Divergence):
            raise FitError(
                "the divergence from the clean output has no slope at the clean input", tries=["TopMargin()"]
            )

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedGradientNorms:
        """Find the units, and take the columns' units from some of the trusted inputs.

        Raises:
            FitError: when the units do not exist.
        """
        require_inputs(trusted)
        found = groups(model, trusted, self.units)
        longest = int(trusted.lengths.max()) if trusted.tokens else 0
        raw = FittedGradientNorms(self, model, found, places_of(model, trusted, found), longest, Scales.unknown())
        scales = Scales.of(raw.reduced(sample(trusted, seed)))
        return FittedGradientNorms(self, model, found, raw.places, longest, scales)

    def restore(self, model: OpenModel, state: State) -> FittedGradientNorms:
        """The fitted signature that wrote ``state``."""
        found = groups_from_data(state.data["groups"], state.tensors)
        places = places_from_data(state.data["places"], found)
        return FittedGradientNorms(self, model, found, places, int(state.data["longest"]), Scales.restore(state))


@dataclass(frozen=True, eq=False)
class FittedGradientNorms:
    """Gradient norms of one model."""

    spec: GradientNorms
    model: OpenModel
    groups: tuple[Group, ...]
    places: dict[str, tuple[Place, ...]]
    longest: int
    scales: Scales

    @property
    def columns(self) -> tuple[Column, ...]:
        """The norms."""
        return self.scales.columns

    @cached_property
    def runs(self) -> LastPosition:
        """Runs of the model for the gradients alone."""
        return LastPosition(self.model)

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) norms; one forward and one backward pass."""
        return self.scales.apply(self.model.inputs(inputs), self.reduced)

    def reduced(self, inputs: Inputs) -> Reduced:
        """The norms in units of the target per unit of the activation."""
        places, target = flat(self.places), as_target(self.spec.target)

        def squares(batch: Batch) -> dict[Place, Tensor]:
            grads = self.runs.run(batch, read=places, target=target).grads
            return {place: slope.double().square() for place, slope in grads.items()}

        tables = sums(self.model, inputs, self.groups, self.places, squares)
        columns = []
        for group in self.groups:
            found = unit_columns(group, f"{group.name} gradient", tables[group.name, "sum"], self.longest)
            columns.append(Reduced(found.columns, np.sqrt(found.values)))
        return join(columns)

    def state(self) -> State:
        """The units, the columns and their scales."""
        masks, rows = groups_to_data(self.groups)
        data = {"groups": rows, "places": places_to_data(self.places), "longest": self.longest}
        return self.scales.save(State(masks, data))
