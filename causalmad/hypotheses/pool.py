"""Pools of trusted donors: who may stand in for whom, drawn by seed, input and purpose."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from causalmad.errors import HypothesisError
from causalmad.hypotheses.graph import Hypothesis
from causalmad.inputs import Inputs

Rows = npt.NDArray[np.int64]
Values = Mapping[str, Sequence[Hashable]]
NOBODY = -1


@dataclass(frozen=True)
class Jobs:
    """Things to be done for some inputs, each several times.

    Attributes:
        digests: (jobs,) content of the input that a job is for; it is never its own donor.
        draws: (jobs,) which of the input's draws this is.
    """

    digests: tuple[str, ...]
    draws: tuple[int, ...]

    @classmethod
    def of(cls, inputs: Inputs, draws: int) -> Jobs:
        """``draws`` jobs for every input, one input after the other."""
        digests = tuple(digest for digest in inputs.digests for _ in range(draws))
        return cls(digests, tuple(range(draws)) * len(inputs))

    def __len__(self) -> int:
        return len(self.digests)


@dataclass(frozen=True, eq=False)
class Pool:
    """The trusted inputs by the values of the claimed variables.

    Attributes:
        inputs: the trusted inputs.
        values: claim -> its value on each of them.
        members: claim -> value -> rows with that value.
        own: content -> rows with that content.
        seed: together with the job and a purpose it decides every draw.
    """

    inputs: Inputs
    values: Values
    members: Mapping[str, Mapping[Hashable, Rows]]
    own: Mapping[Hashable, Rows]
    seed: int

    @classmethod
    def of(cls, hypothesis: Hypothesis, trusted: Inputs, seed: int) -> Pool:
        """The pool, for the claims that say what they hold."""
        values = values_of(hypothesis, trusted)
        members = {name: _groups(found) for name, found in values.items()}
        return cls(trusted, values, members, _groups(trusted.digests), seed)

    def any(self, jobs: Jobs, purpose: str) -> Rows:
        """(jobs,) donors regardless of values.

        Raises:
            HypothesisError: when the pool holds nothing but the input itself.
        """
        everyone = np.arange(len(self.inputs))
        drawn = self._draw(jobs, purpose, [everyone] * len(jobs))
        if (drawn == NOBODY).any():
            raise HypothesisError("the only trusted input cannot be its own donor", needed="at least two")
        return drawn

    def matched(self, jobs: Jobs, claim: str, values: Sequence[Hashable], purpose: str) -> Rows:
        """(jobs,) donors on which a claim has the wanted values; ``NOBODY`` where there is none but the input."""
        nobody = np.zeros(0, dtype=np.int64)
        return self._draw(jobs, purpose, [self.members[claim].get(value, nobody) for value in values])

    def mismatched(self, jobs: Jobs, claim: str, values: Sequence[Hashable], purpose: str) -> Rows:
        """(jobs,) donors on which a claim has another value; ``NOBODY`` where there is none."""
        nobody, everyone = np.zeros(0, dtype=np.int64), np.arange(len(self.inputs))
        known = self.members[claim]
        others = {value: np.setdiff1d(everyone, known.get(value, nobody)) for value in set(values)}
        return self._draw(jobs, purpose, [others[value] for value in values])

    def _draw(self, jobs: Jobs, purpose: str, candidates: Sequence[Rows]) -> Rows:
        drawn = np.full(len(jobs), NOBODY)
        # Candidates in the order of their contents, so that the order in which trusted inputs come decides nothing.
        place = np.argsort(np.argsort(np.array(self.inputs.digests), kind="stable"))
        ordered: dict[int, Rows] = {}
        for job, (digest, draw, found) in enumerate(zip(jobs.digests, jobs.draws, candidates, strict=True)):
            if id(found) not in ordered:
                ordered[id(found)] = found[np.argsort(place[found])]
            rows = ordered[id(found)]
            if digest in self.own:
                rows = rows[np.isin(rows, self.own[digest], invert=True)]
            if len(rows):
                # A hash in place of a generator for every job, which would be slower than the model.
                key = f"{self.seed}:{digest}:{purpose}:{draw}".encode()
                number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
                drawn[job] = rows[number % len(rows)]
        return drawn


def require_values(hypothesis: Hypothesis) -> None:
    """Raise a HypothesisError unless every claim says what its sites hold."""
    empty = [claim.name for claim in hypothesis.claims if claim.value is None]
    if empty:
        raise HypothesisError(
            f"{hypothesis.name!r} has no donors by value: {', '.join(empty)} claim places without values",
            tries=["value=lambda x: ... on these nodes", "Sufficiency(...) for a circuit without values"],
        )


def values_of(hypothesis: Hypothesis, inputs: Inputs) -> dict[str, tuple[Hashable, ...]]:
    """Claim -> its value on every input, for the claims that say what they hold."""
    rows = [inputs.row(i) for i in range(len(inputs))]
    return {claim.name: tuple(claim.of(row) for row in rows) for claim in hypothesis.claims if claim.value is not None}


def at_rows(values: Values, rows: Rows) -> dict[str, tuple[Hashable, ...]]:
    """The values on some rows."""
    return {name: tuple(found[row] for row in rows) for name, found in values.items()}


def _groups(keys: Sequence[Hashable]) -> dict[Hashable, Rows]:
    found: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        found.setdefault(key, []).append(row)
    return {key: np.array(rows) for key, rows in found.items()}
