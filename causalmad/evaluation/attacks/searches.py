"""Input-time attacks by search, which need nothing but scores: numbers or tokens changed at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.errors import SpecError
from causalmad.evaluation.attacks.altered import Altered, answers, values_of, with_values
from causalmad.evaluation.attacks.graphs import twice_differentiable
from causalmad.evaluation.attacks.scores import WhiteBox
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.models.padding import one_batch
from causalmad.signatures.units import embedding

Score: TypeAlias = Callable[[Inputs], npt.NDArray[np.float64]]
"""From inputs to (n,) anomaly scores, such as :meth:`causalmad.detector.FittedDetector.score`."""
Propose: TypeAlias = Callable[[Tensor, np.random.Generator], Tensor]


@dataclass(frozen=True)
class NumberSearch:
    """Moves numbers of inputs, each by at most ``size``, so that the model answers as before and the score falls.

    A random search over the corners of the allowed box: at every query a random tenth of the free numbers of each input
    is moved all the way up, all the way down or back, and the move is kept where the score falls and the answer stays.

    Args:
        size: largest change of a number, in the input's own units.
        queries: how often the detector is asked about each input.
        low: smallest value of a number.
        high: largest value of a number.

    References:
        Andriushchenko et al. 2020, "Square attack", arXiv 1912.00049 (random search on corners, without gradients).
    """

    size: float
    queries: int = 100
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.size < 0 or self.queries < 1 or self.low >= self.high:
            raise SpecError(f"{self!r}", needed="a size of at least 0, a query, and low < high")

    def against(
        self, score: Score, model: OpenModel, inputs: Inputs, free: Tensor | None = None, seed: int = 0
    ) -> Altered:
        """The inputs altered against a score.

        Args:
            score: of the detector; nothing else about it is used.
            model: whose answers are kept.
            inputs: (n, ...) numbers.
            free: mask of a row's shape, true where numbers may move; all by default.
            seed: of the search.
        """
        start = values_of(inputs)
        low, high = start.clamp(max=self.low), start.clamp(min=self.high)  # what lay outside may stay there
        may = torch.ones(start.shape[1:], dtype=torch.bool) if free is None else free.bool()

        def propose(now: Tensor, rng: np.random.Generator) -> Tensor:
            chosen = torch.from_numpy(rng.random(tuple(now.shape)) < 0.1) & may
            way = torch.from_numpy(rng.integers(-1, 2, tuple(now.shape))).to(now)
            new = (start + self.size * way).clamp(low, high)
            return torch.where(chosen, new, now)

        return _search(score, model, inputs, propose, self.queries, seed)


@dataclass(frozen=True)
class TokenSearch:
    """Replaces tokens of inputs, so that the model answers as before and the score falls.

    At every query one token of each input that may be replaced is, and the replacement is kept where the score falls
    and the answer stays. With a :class:`WhiteBox` the replacement is drawn from the eight that the gradient of its
    score at the embedding promises most of; otherwise from all.

    Args:
        alternatives: token -> those that may stand in its place.
        most: how many tokens of an input may differ from what they were.
        queries: how often the detector is asked about each input.

    References:
        Zou et al. 2023, "Universal and transferable adversarial attacks on aligned language models", arXiv 2307.15043
        (greedy coordinate gradient).
    """

    alternatives: Mapping[int, tuple[int, ...]]
    most: int = 3
    queries: int = 100

    def __post_init__(self) -> None:
        if self.most < 1 or self.queries < 1 or not any(self.alternatives.values()):
            raise SpecError(f"{self!r}", needed="something to put in place of a token, one place and one query")

    def against(
        self, score: Score, model: OpenModel, inputs: Inputs, guide: WhiteBox | None = None, seed: int = 0
    ) -> Altered:
        """The inputs altered against a score.

        Args:
            score: of the detector.
            model: whose answers are kept.
            inputs: (n,) rows of tokens of one length.
            guide: a detector whose gradients propose replacements.
            seed: of the search.
        """
        start = values_of(inputs)
        size = 1 + max(int(start.max()), *(max(others) for others in self.alternatives.values() if others))
        allowed = torch.zeros(size, size, dtype=torch.bool)
        for token, others in self.alternatives.items():
            allowed[token, list(others)] = True
        allowed.fill_diagonal_(False)

        def propose(now: Tensor, rng: np.random.Generator) -> Tensor:
            may = allowed[start]  # what a place may hold is said by what it held at first
            may = may.scatter(-1, now[..., None], False)
            full = ((now != start).sum(1) >= self.most)[:, None] & (now == start)
            may &= ~full[..., None]
            worth = torch.from_numpy(rng.random(tuple(may.shape)))
            if guide is not None:
                promise = -_promised(guide, with_values(inputs, now))[..., :size]
                promise = torch.where(may, promise, -torch.inf).flatten(1)
                best = promise.topk(min(8, promise.shape[1]), dim=1).indices
                may = may & torch.zeros_like(promise, dtype=torch.bool).scatter(1, best, True).reshape(may.shape)
            worth = torch.where(may, worth, -1.0).flatten(1)
            value, which = worth.max(1)
            new = now.clone()
            rows = torch.arange(len(now))[value > 0]
            new[rows, which[rows] // size] = which[rows] % size
            return new

        return _search(score, model, inputs, propose, self.queries, seed)


def _promised(guide: WhiteBox, inputs: Inputs) -> Tensor:
    """(n, positions, vocabulary) to first order, the change of the excess when a token is replaced by another."""
    with guide.fitted.model.quiet(), twice_differentiable(guide.model.module):
        batch = one_batch(guide.model, inputs)
        batch = replace(batch, rows=np.arange(len(inputs)))
        weight = guide.model.module.get_submodule(embedding(guide.model).path).get_parameter("weight").detach()
        values = weight[batch.main].requires_grad_()
        model = replace(guide.model, soft=values, tokens=batch.main)
        (slope,) = torch.autograd.grad(guide.excess(batch, model).sum(), values)
    change: Tensor = slope @ weight.T - (slope * values.detach()).sum(-1, keepdim=True)
    return change


def _search(score: Score, model: OpenModel, inputs: Inputs, propose: Propose, queries: int, seed: int) -> Altered:
    rng = np.random.default_rng(seed)
    wanted, now = answers(model, inputs), values_of(inputs)
    least = np.asarray(score(inputs), dtype=np.float64)
    scores = [least]
    for _ in range(queries):
        new = propose(now, rng)
        tried = with_values(inputs, new)
        found = np.asarray(score(tried), dtype=np.float64)
        better = (found < least) & (answers(model, tried) == wanted).numpy()
        least = np.where(better, found, least)
        now = torch.where(torch.from_numpy(better).reshape(-1, *[1] * (now.ndim - 1)), new, now)
        scores.append(least)
    return Altered(with_values(inputs, now), np.ones(len(inputs), dtype=bool), np.stack(scores))
