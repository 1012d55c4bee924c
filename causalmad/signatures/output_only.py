"""Output only: how sure the model is of its answer, the control for everything that looks inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.signatures.base import Column, Signatures, State, require_inputs, signatures
from causalmad.signatures.table import table
from causalmad.targets import margin

_NAMES = ("log max probability", "energy", "margin", "entropy")


@dataclass(frozen=True)
class OutputOnly:
    """Confidence, energy, margin and entropy of the output: the control that sees nothing but the answer.

    A detector that does no better than this one on a task has not looked inside.

    Columns, from the logits at the last token, in nats: the logarithm of the largest softmax probability; the energy,
    minus the logsumexp of the logits; the margin, the top logit minus the logsumexp of the others (which does not
    saturate); the entropy of the softmax.

    References:
        Hendrycks and Gimpel 2017, arXiv 1610.02136 (largest probability); Liu et al. 2020, arXiv 2010.03759 (energy).
    """

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedOutputOnly:
        """Nothing is fitted.

        Raises:
            FitError: when there is no input.
        """
        require_inputs(trusted)
        return FittedOutputOnly(model)

    def restore(self, model: OpenModel, state: State) -> FittedOutputOnly:
        """The fitted signature that wrote ``state``."""
        return FittedOutputOnly(model)


@dataclass(frozen=True, eq=False)
class FittedOutputOnly:
    """The output of one model."""

    model: OpenModel
    columns: tuple[Column, ...] = tuple(Column(name, unit=name, block="output") for name in _NAMES)

    def __call__(self, inputs: Any) -> Signatures:
        """(n, 4) nats; one forward pass."""
        known = self.model.inputs(inputs)

        def rows(batch: Batch) -> Tensor:
            return confidence(self.model.logits(batch))

        return signatures(known, self.columns, table(self.model, known, len(_NAMES), rows))

    def state(self) -> State:
        """Empty."""
        return State({}, {})


def confidence(logits: Tensor) -> Tensor:
    """(batch, 4) log of the largest probability, energy, margin and entropy of logits (batch, classes), in nats."""
    exact = logits.double()
    logs = log_softmax(exact, -1)
    entropy = -(logs.exp() * logs).sum(-1)
    return torch.stack([logs.amax(-1), -exact.logsumexp(-1), margin(exact, exact.argmax(-1)), entropy], 1)
