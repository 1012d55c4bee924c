"""Activations: the baseline that every other signature has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from causalmad.inputs import Batch, Inputs
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
from causalmad.signatures.table import table
from causalmad.sites import Site, require_rows


@dataclass(frozen=True)
class Activations:
    """Activations at some sites: what most detectors look at, and the baseline beside ours.

    Args:
        sites: role, path, glob or a list of them; ``auto`` is the residual stream after every block of a known
            architecture, and the output of every nonlinear layer of any other module.
        positions: which token: a number (``-1`` is the last real one), the name of a position column, or ``all`` /
            ``all:max`` for a statistic over the tokens. Inputs that are no tokens are averaged over space.

    Columns are single entries of an activation, in the model's own units. Space is every axis but that of channels,
    which the modules say: the second for convolutions, batch norms and pools, the last for linear maps and layer norms,
    and for activation functions that of what stands before them in a ``Sequential``, or of the modules around them
    where these agree. Where nothing says it (blocks with a ``forward`` of their own), it is the last of three axes and
    the second of four; more are not averaged.

    References:
        As features of a detector: Lee, Lee, Lee, Shin 2018, arXiv 1807.03888.
    """

    sites: str | tuple[str, ...] = "auto"
    positions: int | str = -1

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedActivations:
        """Nothing is fitted but the names of the columns, which one input shows.

        Raises:
            FitError: when there is no input.
            SiteError: when a site does not exist, or its first axis does not run over the inputs.
        """
        require_inputs(trusted)
        default = self.positions if trusted.tokens else None
        sites = tuple(site if site.position is not None else site.at(default) for site in self._sites(model))
        (batch,) = model.batches(trusted[:1])
        run = model.run(batch, read=list({site.place: None for site in sites}), output=False)
        columns = tuple(
            Column(f"{site}[{i}]", str(site), str(i), _text(site.position), str(site.place))
            for site in sites
            for i in range(features(run.values[site.place], site, batch).shape[1])
        )
        return FittedActivations(model, sites, columns)

    def restore(self, model: OpenModel, state: State) -> FittedActivations:
        """The fitted signature that wrote ``state``."""
        sites = tuple(model.sites(str(text))[0] for text in state.data["sites"])
        return FittedActivations(model, sites, columns_from_data(state.data["columns"]))

    def _sites(self, model: OpenModel) -> tuple[Site, ...]:
        if self.sites == "auto":
            return model.sites("residual" if model.architecture else "layers")
        return model.sites(self.sites)


@dataclass(frozen=True, eq=False)
class FittedActivations:
    """Activations of one model."""

    model: OpenModel
    sites: tuple[Site, ...]
    columns: tuple[Column, ...]

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) activations; one forward pass, stopped after the last site."""
        known = self.model.inputs(inputs)
        places = list({site.place: None for site in self.sites})

        def rows(batch: Batch) -> Tensor:
            run = self.model.run(batch, read=places, output=False)
            return torch.cat([features(run.values[site.place], site, batch) for site in self.sites], dim=1)

        values = table(self.model, known, len(self.columns), rows)
        return signatures(known, self.columns, values)

    def state(self) -> State:
        """Sites and columns; there are no arrays."""
        return State({}, {"sites": [str(site) for site in self.sites], "columns": columns_to_data(self.columns)})


def features(value: Tensor, site: Site, batch: Batch) -> Tensor:
    """(batch, features) of an activation: at the site's position for tokens, averaged over space for others.

    Raises:
        SiteError: where its first axis does not run over the inputs.
    """
    require_rows(value, site, batch)
    if batch.mask is not None:
        part = site.take(value, batch)
        return part if part.ndim == 2 else part.flatten(1)
    part = site.at(None).take(value, batch)
    axis = site.channel_axis(part.ndim)
    return part.flatten(1) if axis is None else part.mean([i for i in range(1, part.ndim) if i != axis])


def _text(position: int | str | None) -> str:
    return "" if position is None else str(position)
