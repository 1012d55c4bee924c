"""Input-time attacks on tokens by gradient: their embeddings moved, as in a soft prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.errors import SpecError
from causalmad.evaluation.attacks.gradients import KEEPS
from causalmad.evaluation.attacks.graphs import GraphModel, twice_differentiable
from causalmad.evaluation.attacks.scores import WhiteBox
from causalmad.hypotheses import Donors
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.models.padding import one_batch
from causalmad.signatures.base import FittedSignature
from causalmad.signatures.concat import FittedConcat
from causalmad.signatures.units import embedding
from causalmad.targets import margin

Floats = npt.NDArray[np.float64]
_LEAST_SLOPE = 1e-30


@dataclass(frozen=True, eq=False)
class Softened:
    """Inputs whose tokens have other embeddings than their own.

    Attributes:
        batch: all inputs. Where an embedding may have moved stands a token that no donor has, so that a donor's token
            is seen to be another one.
        values: (n, positions, width) the embeddings.
        kept: (n,) whether the model answers as it did.
        scores: (steps + 1, n) the lowest excess found so far with the answer kept.
    """

    batch: Batch
    values: Tensor
    kept: npt.NDArray[np.bool_]
    scores: Floats

    def view(self, model: OpenModel) -> GraphModel:
        """The model, with these embeddings in place of those of the batch's tokens; for this batch alone."""
        return replace(GraphModel.of(model), soft=self.values, tokens=self.batch.main)

    def scored(self, box: WhiteBox) -> Floats:
        """(n,) anomaly scores that a detector of the same model gives."""
        with box.fitted.model.quiet(), twice_differentiable(box.model.module):
            found: Floats = box.score(self.batch, self.view(box.model)).detach().numpy()
        return found

    @torch.no_grad()
    def answers(self, model: OpenModel) -> Tensor:
        """(n,) the class, or next token, that the model thinks likeliest."""
        with model.quiet():
            return self.view(model).logits(self.batch).argmax(-1).cpu()


@dataclass(frozen=True)
class SoftPrompt:
    """Moves the embeddings of tokens, so that the model answers as before and the detector's score falls.

    Projected gradient descent, through the signature: every free position's embedding may go as far from its own as
    ``size`` times the mean length of the vocabulary's embeddings. At 1 that is about as far as another token lies, so
    that what is found is at least what could be found by replacing tokens, and mostly more: a soft prompt is no text,
    and stands for whoever can write into the model's embeddings, or for the best that a search over tokens might reach.
    The loss and what counts as found are those of :class:`Perturbation`.

    Args:
        size: largest move of an embedding, in mean lengths of the vocabulary's embeddings.
        steps: of the descent.
        margin: of the answer, in nats, that is to be kept.

    References:
        Lester, Al-Rfou, Constant 2021, "The power of scale for parameter-efficient prompt tuning", arXiv 2104.08691;
        against detectors: Bailey et al. 2024, arXiv 2412.09565.
    """

    size: float
    steps: int = 30
    margin: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 0 or self.steps < 1:
            raise SpecError(f"{self!r}", needed="a size of at least 0, and a step")

    def against(self, box: WhiteBox, inputs: Inputs, free: Tensor | None = None) -> Softened:
        """The inputs with embeddings moved against a detector.

        Args:
            box: the detector.
            inputs: (n,) rows of tokens, whose answers are to be kept.
            free: (positions,) or (n, positions) mask of the positions that may move, in the padded batch; all real
                tokens by default.

        Raises:
            SpecError: on inputs that are no tokens.
        """
        if not inputs.tokens:
            raise SpecError("numbers have no embeddings", tries=["Perturbation(...)"])
        with box.fitted.model.quiet(), twice_differentiable(box.model.module):
            batch = one_batch(box.model, inputs)
            return self._descend(box, replace(batch, rows=np.arange(len(inputs))), free)

    def _descend(self, box: WhiteBox, batch: Batch, free: Tensor | None) -> Softened:
        place = embedding(box.model)
        weight = box.model.module.get_submodule(place.path).get_parameter("weight").detach()
        with torch.no_grad():
            start = box.model.run(batch, read=[place]).values[place].detach()
            wanted = box.model.logits(batch).argmax(-1)
        radius = self.size * float(weight.norm(dim=-1).mean())
        may = torch.ones_like(batch.main, dtype=torch.bool) if free is None else free.expand_as(batch.main)
        may = may if batch.mask is None else may & batch.mask.bool()
        batch = batch.with_main(torch.where(may, _unused(box, batch, len(weight)), batch.main))
        moved = torch.zeros_like(start)
        best, least = start.clone(), torch.full((len(start),), torch.inf, dtype=torch.float64)
        scores, kept = [], torch.zeros(len(start), dtype=torch.bool)
        for step in range(self.steps + 1):
            values = (start + moved).requires_grad_()
            model = replace(box.model, soft=values, tokens=batch.main)
            excess, logits = box.excess(batch, model), model.logits(batch)
            same = logits.detach().argmax(-1) == wanted
            fits = same & (excess.detach() < least)
            best[fits], least[fits] = values.detach()[fits], excess.detach()[fits]
            kept |= same
            scores.append(least.numpy().copy())
            if step == self.steps:
                break
            loss = excess.sum() + KEEPS * (self.margin - margin(logits, wanted)).clamp_min(0).sum()
            (slope,) = torch.autograd.grad(loss, values)
            way = slope / slope.norm(dim=-1, keepdim=True).clamp_min(_LEAST_SLOPE)
            moved = (moved - 2.5 * radius / self.steps * way) * may[..., None]
            far = moved.norm(dim=-1, keepdim=True)
            moved = moved * (radius / far.clamp_min(_LEAST_SLOPE)).clamp_max(1.0)
        return Softened(batch, best, kept.numpy(), np.stack(scores))


def _unused(box: WhiteBox, batch: Batch, vocabulary: int) -> Tensor:
    """(n, positions) a token that no donor of the detector has; the inputs' own where there is none."""
    seen = {int(token) for donors in _donors(box.fitted.signature) for row in donors.inputs.main for token in row}
    other = next((token for token in range(vocabulary) if token not in seen), None)
    return batch.main if other is None else torch.full_like(batch.main, other)


def _donors(signature: FittedSignature) -> Iterator[Donors]:
    for part in signature.parts if isinstance(signature, FittedConcat) else (signature,):
        found = getattr(part, "donors", None)
        if isinstance(found, Donors):
            yield found
