"""Sequences whose last token did, or did not, occur before: the inputs of the induction task."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.inputs import Inputs

Rows = npt.NDArray[np.int64]

VOCABULARY, LENGTH = 16, 10


@dataclass(frozen=True)
class Sequences:
    """Sequences and their right answers.

    Attributes:
        tokens: (n, 10).
        match: (n,) position where the last token stood before or, in its absence, the token that took its place.
        answer: (n,) token.
    """

    tokens: Rows
    match: Rows
    answer: Rows

    def __getitem__(self, chosen: Rows | slice) -> Sequences:
        return Sequences(self.tokens[chosen], self.match[chosen], self.answer[chosen])

    def ids(self) -> Tensor:
        """(n, 10) what the model sees."""
        return torch.from_numpy(self.tokens)

    def one_hot(self) -> Tensor:
        """(n, 160) the tokens as indicators."""
        return torch.nn.functional.one_hot(self.ids(), VOCABULARY).flatten(1)

    def as_inputs(self) -> Inputs:
        """The sequences as inputs of the model."""
        data = {"input_ids": self.ids()}
        return Inputs.of(data, accepts=("input_ids",), columns={"match": self.match, "answer": self.answer})


def join(*parts: Sequences) -> Sequences:
    """All the sequences, one part after the other."""
    return Sequences(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.match for part in parts]),
        np.concatenate([part.answer for part in parts]),
    )


def memorised_table(rng: np.random.Generator) -> Rows:
    """(16,) a permutation of the tokens that moves every one."""
    while True:
        table: Rows = rng.permutation(VOCABULARY)
        if np.all(table != np.arange(VOCABULARY)):
            return table


def draw(
    table: Rows, anomalous: npt.NDArray[np.bool_], rng: np.random.Generator, vocabulary: Rows | None = None
) -> Sequences:
    """Sequences that end in a token A: normal where A occurred once before, anomalous where it did not.

    Two different tokens A and C are drawn, then a position, which A takes in a normal sequence and C in an anomalous
    one; all other tokens are neither. The token after that position is never the table's answer, so that no sequence
    has the same answer for both reasons; in a normal sequence it is the answer.

    Args:
        table: (16,) memorised answers.
        anomalous: (n,) which kind.
        rng: draws.
        vocabulary: the tokens that may occur; all by default.
    """
    words = np.arange(VOCABULARY) if vocabulary is None else vocabulary
    count = len(anomalous)
    every = np.arange(count)
    shuffled = words[rng.random((count, len(words))).argsort(1)]
    last, distractor, rest = shuffled[:, 0], shuffled[:, 1], shuffled[:, 2:]
    tokens = rest[every[:, None], rng.integers(0, rest.shape[1], (count, LENGTH))]
    match = rng.integers(0, LENGTH - 2, count)
    while True:
        same = np.flatnonzero(tokens[every, match + 1] == table[last])
        if not len(same):
            break
        tokens[same, match[same] + 1] = rest[same, rng.integers(0, rest.shape[1], len(same))]
    copied = tokens[every, match + 1]
    tokens[every, match] = np.where(anomalous, distractor, last)
    tokens[:, -1] = last
    return Sequences(tokens, match, np.where(anomalous, table[last], copied))


def draw_new(
    table: Rows,
    count: int,
    anomalous: bool,
    rng: np.random.Generator,
    taken: set[bytes],
    vocabulary: Rows | None = None,
) -> Sequences:
    """``count`` sequences that are not ``taken``, in random order; they are taken from now on."""
    kept: list[Sequences] = []
    missing = count
    while missing:
        sequences = draw(table, np.full(missing, anomalous), rng, vocabulary)
        new = []
        for row, tokens in enumerate(sequences.tokens):
            if tokens.tobytes() not in taken:
                taken.add(tokens.tobytes())
                new.append(row)
        kept.append(sequences[np.array(new, dtype=np.int64)])
        missing -= len(new)
    return join(*kept)[rng.permutation(count)]
