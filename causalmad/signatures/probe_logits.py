"""Probe logits: how sure a linear probe of each layer is of the model's own answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causalmad.config import require_options
from causalmad.errors import FitError, ModelError
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.signatures.activations import Activations, features
from causalmad.signatures.base import Column, Signatures, State, require_inputs, signatures
from causalmad.signatures.probes import Probes, log_odds
from causalmad.signatures.table import table
from causalmad.targets import margin

_KINDS = ("log-odds", "top margin")


@dataclass(frozen=True)
class ProbeLogits:
    """Log-odds that a linear probe of each layer gives to the model's own answer.

    On trusted inputs each layer's probe learns to tell what the model will answer. Where the answer comes about in
    another way, the probes of some layers do not know it.

    Args:
        sites: role, path, glob or a list of them; ``auto`` is the residual stream after every block of a known
            architecture, and the output of every nonlinear layer of any other module.
        positions: which token: a number (``-1`` is the last real one), the name of a position column, or ``all`` for
            the mean over the tokens. Inputs that are no tokens are averaged over space.
        classes: how many of the most frequent trusted answers have a class of their own; all others are one class.

    Columns, per site and in nats: the log-odds of the model's answer against all other classes, and the largest margin
    of any class. An answer that no trusted input has counts as the least likely class.

    Probes are multinomial logistic regressions on standardised activations (each content once), whose penalty has the
    smallest cross-validated loss. A trusted input is read by the probe that was fitted without its fold, since the
    probe that has seen it is surer of it than of any new input.

    References:
        Mallen et al. 2023, arXiv 2312.01037.
    """

    sites: str | tuple[str, ...] = "auto"
    positions: int | str = -1
    classes: int = 16

    def __post_init__(self) -> None:
        require_options(self)
        if self.classes < 1:
            raise FitError(f"classes={self.classes}", needed="at least 1")

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedProbeLogits:
        """Fit the probes; a forward pass over the trusted inputs for the activations and one for the answers.

        Raises:
            FitError: when the trusted inputs have fewer than two answers that occur at least twice each.
            SiteError: when a site does not exist.
        """
        require_inputs(trusted)
        reader = Activations(self.sites, self.positions)
        return FittedProbeLogits(model, Probes.fit(model, trusted, reader, self.classes, seed))

    def restore(self, model: OpenModel, state: State) -> FittedProbeLogits:
        """The fitted signature that wrote ``state``."""
        return FittedProbeLogits(model, Probes.restore(model, state))


@dataclass(frozen=True, eq=False)
class FittedProbeLogits:
    """The probes of one model.

    Attributes:
        model: the model.
        probes: one per layer.
    """

    model: OpenModel
    probes: Probes

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the numbers are."""
        return tuple(
            Column(f"{site} probe {kind}", str(site), kind, "" if site.position is None else str(site.position), kind)
            for site in self.probes.layers.sites
            for kind in _KINDS
        )

    def __call__(self, inputs: Any) -> Signatures:
        """(n, 2 layers) nats; one forward pass."""
        known = self.model.inputs(inputs)
        which = self.probes.which(known)
        sites = self.probes.layers.sites
        places = list(dict.fromkeys(site.place for site in sites))

        def rows(batch: Batch) -> Tensor:
            run = self.model.run(batch, read=places)
            if run.logits is None:
                raise ModelError("the run gave no logits")
            answers, found = self.probes.answers(run.logits), []
            for layer, site in enumerate(sites):
                values = features(run.values[site.place], site, batch).double()
                logits = self.probes.read(layer, values, which[np.asarray(batch.rows)])
                found += [log_odds(logits, answers), margin(logits, logits.argmax(-1))]
            return torch.stack(found, 1)

        return signatures(known, self.columns, table(self.model, known, len(self.columns), rows))

    def state(self) -> State:
        """The probes."""
        return self.probes.state()
