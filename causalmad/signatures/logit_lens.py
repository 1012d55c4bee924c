"""Logit lens: how the answer takes shape from layer to layer, read through the model's own head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from causalmad.errors import FitError, ModelError
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.signatures.base import Column, Signatures, State, require_inputs, signatures
from causalmad.signatures.table import table
from causalmad.sites import Place, Site
from causalmad.targets import divergence, margin

_KINDS = ("divergence", "log probability", "margin", "entropy")


@dataclass(frozen=True)
class LogitLens:
    """The output that the model would give if it stopped after each layer: the trajectory of its answer.

    The residual stream after a block, put in place of the last one before the final norm, gives that layer's logits:
    final norm, unembedding and whatever else the model does to its logits are the model's own. Known pre-norm
    transformers only (GPT-2, GPT-NeoX, Llama and its relatives).

    Columns, per layer and in nats, at the last token: the Kullback-Leibler divergence from the final output to the
    layer's; the log-probability of the final answer; its margin, its logit minus the logsumexp of the others; and the
    entropy. The last layer is the output itself and has no divergence.

    References:
        nostalgebraist 2020, "interpreting GPT: the logit lens"; Belrose et al. 2023, arXiv 2303.08112.
    """

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedLogitLens:
        """Nothing is fitted.

        Raises:
            FitError: when there is no input, or the model has no final norm that is known.
        """
        require_inputs(trusted)
        return self._on(model)

    def restore(self, model: OpenModel, state: State) -> FittedLogitLens:
        """The fitted signature that wrote ``state``."""
        return self._on(model)

    def _on(self, model: OpenModel) -> FittedLogitLens:
        family = model.architecture
        if family is None or family.wiring is None:
            raise FitError(
                f"a logit lens on {model.name}, {f'of the {family.name} family' if family else 'of no known family'}",
                needed="a final norm before the logits: GPT-2, GPT-NeoX, Llama, Mistral, Qwen, Gemma",
                tries=["OutputOnly()", "LayerTransitions()"],
            )
        sites = model.sites("residual")
        columns = tuple(
            Column(f"{site} {kind}", str(site), kind, "-1", "logit lens")
            for layer, site in enumerate(sites)
            for kind in (_KINDS if layer < len(sites) - 1 else _KINDS[1:])
        )
        return FittedLogitLens(model, sites, Place(family.wiring.final_norm, "input"), columns)


@dataclass(frozen=True, eq=False)
class FittedLogitLens:
    """The logit lens of one model.

    Attributes:
        model: the model.
        sites: the residual stream after every block.
        norm: where the final norm reads.
        columns: what the numbers are.
    """

    model: OpenModel
    sites: tuple[Site, ...]
    norm: Place
    columns: tuple[Column, ...]

    def __call__(self, inputs: Any) -> Signatures:
        """(n, 4 layers - 1) nats; as many forward passes as the model has layers."""
        known = self.model.inputs(inputs)
        if not len(known):
            return signatures(known, self.columns, np.empty((0, len(self.columns))))
        return signatures(known, self.columns, table(self.model, known, len(self.columns), self._rows))

    def state(self) -> State:
        """Empty: all is in the model."""
        return State({}, {})

    def _rows(self, batch: Batch) -> Tensor:
        run = self.model.run(batch, read=[site.place for site in self.sites])
        if run.logits is None:
            raise ModelError("the run gave no logits")
        final = run.logits.double()
        answer, logs = final.argmax(-1), log_softmax(final, -1)
        parts = []
        for site in self.sites[:-1]:
            early = self.model.logits(batch, {self.norm: _put(run.values[site.place])}).double()
            parts += [divergence(logs, log_softmax(early, -1))[:, None], _read(early, answer)]
        return torch.cat([*parts, _read(final, answer)], 1)


def _put(residual: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _: residual


def _read(logits: Tensor, answer: Tensor) -> Tensor:
    """(batch, 3) log-probability and margin of the answer, and entropy, in nats."""
    logs = log_softmax(logits, -1)
    chosen = logs.gather(-1, answer[:, None]).squeeze(-1)
    return torch.stack([chosen, margin(logits, answer), -(logs.exp() * logs).sum(-1)], 1)
