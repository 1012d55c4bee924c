"""Input-time attacks by gradient: numbers of an input moved a little, so that the detector's score falls."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from causalmad.errors import SpecError
from causalmad.evaluation.attacks.altered import Altered, values_of, with_values
from causalmad.evaluation.attacks.graphs import twice_differentiable
from causalmad.evaluation.attacks.scores import WhiteBox
from causalmad.inputs import Batch, Inputs
from causalmad.models.padding import one_batch
from causalmad.targets import margin

KEEPS = 10.0  # weight of the answer beside the score


@dataclass(frozen=True)
class Perturbation:
    """Moves numbers of inputs, each by at most ``size``, so that the model answers as before and the score falls.

    Projected gradient descent on signs, through the signature: the loss is the detector's excess over what trusted
    inputs score, plus ten times what the margin of the model's first answer lacks. Of all steps that keep the answer
    the one with the lowest excess counts; of a shared change, the one with the lowest loss over all inputs. Tokens are
    no numbers: see :class:`TokenSearch`.

    Args:
        size: largest change of a number, in the input's own units.
        steps: of the descent.
        shared: one change for all inputs, as a trigger is, and not one for each.
        low: smallest value of a number.
        high: largest value of a number.
        margin: of the answer, in nats, that is to be kept.

    References:
        Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks", arXiv 1706.06083; against
        detectors: Carlini, Wagner 2017, "Adversarial examples are not easily detected", arXiv 1705.07263.
    """

    size: float
    steps: int = 30
    shared: bool = False
    low: float = 0.0
    high: float = 1.0
    margin: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 0 or self.steps < 1 or self.low >= self.high:
            raise SpecError(f"{self!r}", needed="a size of at least 0, a step, and low < high")

    def against(self, box: WhiteBox, inputs: Inputs, free: Tensor | None = None) -> Altered:
        """The inputs altered against a detector.

        Args:
            box: the detector.
            inputs: (n, ...) numbers, whose answers are to be kept.
            free: mask of a row's shape, true where numbers may move; all by default.

        Raises:
            SpecError: on tokens.
        """
        if inputs.tokens:
            raise SpecError("tokens cannot be moved a little", tries=["TokenSearch(...)"])
        with box.fitted.model.quiet(), twice_differentiable(box.model.module):
            batch = one_batch(box.model, inputs)
            return self._descend(box, inputs, replace(batch, rows=np.arange(len(inputs))), free)

    def _descend(self, box: WhiteBox, inputs: Inputs, batch: Batch, free: Tensor | None) -> Altered:
        start = batch.main
        may = torch.ones_like(start[:1]) if free is None else free.to(start)[None]
        with torch.no_grad():
            wanted = box.model.logits(batch).argmax(-1)
        moved = torch.zeros_like(start)
        low, high = start.clamp(max=self.low), start.clamp(min=self.high)  # what lay outside may stay there
        best, least = start.clone(), torch.full((len(start),), torch.inf, dtype=torch.float64)
        scores, kept = [], torch.zeros(len(start), dtype=torch.bool)
        lowest, shared, reached = torch.inf, (best, kept), least
        for step in range(self.steps + 1):
            values = (start + moved).clamp(low, high).detach().requires_grad_()
            now = batch.with_main(values)
            excess, logits = box.excess(now), box.model.logits(now)
            same = logits.detach().argmax(-1) == wanted
            fits = same & (excess.detach() < least)
            best[fits], least[fits] = values.detach()[fits], excess.detach()[fits]
            kept |= same
            loss = excess.sum() + KEEPS * (self.margin - margin(logits, wanted)).clamp_min(0).sum()
            if float(loss.detach()) < lowest:
                lowest, shared, reached = float(loss.detach()), (values.detach(), same), excess.detach()
            scores.append((reached if self.shared else least).numpy().copy())
            if step == self.steps:
                break
            (slope,) = torch.autograd.grad(loss, values)
            slope = slope.sum(0, keepdim=True).expand_as(slope) if self.shared else slope
            rate = 2.5 * self.size / self.steps
            moved = ((moved - rate * slope.sign()) * may).clamp(-self.size, self.size)
        if self.shared:  # one trigger, and not the best step of each
            best, kept = shared
        return Altered(with_values(inputs, best.to(values_of(inputs))), kept.numpy(), np.stack(scores))
