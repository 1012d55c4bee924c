"""Counterfactual pairs: a base, a source, and the causal model's answer when a variable is taken from the source."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from causalmad.errors import HypothesisError
from causalmad.hypotheses.graph import Hypothesis
from causalmad.hypotheses.interchange import one, predict
from causalmad.hypotheses.pool import Rows, Values, values_of
from causalmad.inputs import Inputs


@dataclass(frozen=True)
class Pairs:
    """Pairs with the answers that a causal model predicts.

    Attributes:
        base: (pairs,) rows of the inputs that receive the variable.
        source: (pairs,) rows of the inputs that give it.
        expected: (pairs,) class that should come out.
        own: (pairs,) class that the base has on its own.
    """

    base: Rows
    source: Rows
    expected: npt.NDArray[np.int64]
    own: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.base)

    @property
    def changed(self) -> npt.NDArray[np.bool_]:
        """(pairs,) whether the answer should change."""
        changed: npt.NDArray[np.bool_] = self.expected != self.own
        return changed

    def take(self, index: Rows) -> Pairs:
        """Some of the pairs."""
        return Pairs(self.base[index], self.source[index], self.expected[index], self.own[index])

    def shifted(self, classes: Sequence[int]) -> Pairs:
        """The same pairs with wrong answers: every class stands for the next one of ``classes``."""
        following = dict(zip(classes, [*classes[1:], *classes[:1]], strict=True))
        return replace(self, expected=np.array([following.get(int(e), int(e)) for e in self.expected], dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Counterfactuals:
    """What a causal model answers for any pair of some inputs; equal values are asked for once.

    Attributes:
        hypothesis: the causal model.
        claim: the variable that is taken from the source.
        values: claim -> its value on every input.
    """

    hypothesis: Hypothesis
    claim: str
    values: Values
    _known: dict[Hashable, int] = field(default_factory=dict)

    @classmethod
    def of(cls, hypothesis: Hypothesis, claim: str, inputs: Inputs) -> Counterfactuals:
        """The counterfactuals of some inputs.

        Raises:
            HypothesisError: when the claim has no value.
        """
        values = values_of(hypothesis, inputs)
        if claim not in values:
            raise HypothesisError(f"node {claim!r} has no value", tries=[f"value= on {claim!r}"])
        return cls(hypothesis, claim, values)

    def draw(self, rows: Rows, count: int, rng: np.random.Generator) -> Pairs:
        """``count`` pairs of the inputs at ``rows``, with replacement."""
        base, source = rng.choice(rows, count), rng.choice(rows, count)
        expected = [self._answer(int(b), int(s)) for b, s in zip(base, source)]
        own = [self._answer(int(b), int(b)) for b in base]
        return Pairs(base, source, np.array(expected, dtype=np.int64), np.array(own, dtype=np.int64))

    def balanced(self, rows: Rows, count: int, rng: np.random.Generator) -> Pairs:
        """``count`` pairs of which the answer should change in at least half, where that can be found."""
        found = self.draw(rows, 4 * count, rng)
        first = np.flatnonzero(found.changed)[: count // 2]
        rest = np.setdiff1d(np.arange(len(found)), first)[: count - len(first)]
        return found.take(np.concatenate([first, rest]))

    def _answer(self, base: int, source: int) -> int:
        mine, theirs = one(self.values, base), self.values[self.claim][source]
        key = (tuple(mine.values()), theirs)
        if key not in self._known:
            self._known[key] = predict(self.hypothesis, mine, {self.claim: theirs})
        return self._known[key]
