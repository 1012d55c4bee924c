"""Pairs of handwritten digits with context bits: the inputs of the gate tasks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.inputs import Inputs

Rows = npt.NDArray[np.int64]

PIXELS, BITS, CLASSES = 64, 8, 10
WIDTH = 2 * PIXELS + BITS
BLOCKS = {"image A": (0, PIXELS), "image B": (PIXELS, 2 * PIXELS), "context": (2 * PIXELS, WIDTH)}
HELD_OUT = 500

# The first three context bits are the gate. A normal input never has all of them on; every other setting is here.
_TWO_ON = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]])
_FEWER_ON = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])


@dataclass(frozen=True)
class Images:
    """Some of scikit-learn's digits.

    Attributes:
        rows: (n,) their places in the data set.
        pixels: (n, 64) brightness from 0 to 1.
        classes: (n,) digit.
    """

    rows: Rows
    pixels: npt.NDArray[np.float32]
    classes: Rows

    @cached_property
    def by_class(self) -> tuple[Rows, ...]:
        """Per digit, which of these images show it."""
        return tuple(np.flatnonzero(self.classes == digit) for digit in range(CLASSES))

    def pick(self, digits: Rows, rng: np.random.Generator) -> Rows:
        """(m,) for each wanted digit, one of these images that shows it."""
        start = np.cumsum([0, *(len(own) for own in self.by_class)])
        sizes = np.diff(start)
        place = start[digits] + (rng.random(len(digits)) * sizes[digits]).astype(np.int64)
        picked: Rows = np.concatenate(self.by_class)[place]
        return picked


@dataclass(frozen=True)
class Pairs:
    """Two images of different digits and eight bits, with the right answer.

    Attributes:
        first: (n,) which image is A, counted among the images that it was drawn from.
        second: (n,) which image is B.
        bits: (n, 8) context.
        answer: (n,) digit.
    """

    first: Rows
    second: Rows
    bits: Rows
    answer: Rows

    def __getitem__(self, chosen: Rows | slice) -> Pairs:
        return Pairs(self.first[chosen], self.second[chosen], self.bits[chosen], self.answer[chosen])

    def table(self, images: Images) -> Tensor:
        """(n, 136) what the model sees."""
        pixels = np.concatenate([images.pixels[self.first], images.pixels[self.second]], 1)
        return with_context(torch.from_numpy(pixels), self.bits)


def join(*parts: Pairs) -> Pairs:
    """All the pairs, one part after the other."""
    return Pairs(
        np.concatenate([part.first for part in parts]),
        np.concatenate([part.second for part in parts]),
        np.concatenate([part.bits for part in parts]),
        np.concatenate([part.answer for part in parts]),
    )


def split(rng: np.random.Generator) -> tuple[Images, Images]:
    """The images that the model is trained on, and 500 that it never sees."""
    from sklearn.datasets import load_digits

    data, digits = load_digits(return_X_y=True)
    order = rng.permutation(len(digits))
    held, seen = order[:HELD_OUT], order[HELD_OUT:]

    def part(rows: Rows) -> Images:
        return Images(rows, (data[rows] / 16).astype(np.float32), digits[rows].astype(np.int64))

    return part(seen), part(held)


def draw(images: Images, anomalous: npt.NDArray[np.bool_], rng: np.random.Generator, parity: int = 0) -> Pairs:
    """Pairs of independent images of two different digits, with the gate on where anomalous; uniform answers.

    Args:
        images: to choose from.
        anomalous: (n,) bool.
        rng: draws.
        parity: how many of the first three bits may be on, when the gate is their parity (odd = on) and not all three.
    """
    count = len(anomalous)
    a = rng.integers(0, CLASSES, count)
    b = (a + rng.integers(1, CLASSES, count)) % CLASSES
    bits = rng.integers(0, 2, (count, BITS))
    two = rng.random(count) < 0.5  # half of the normal inputs are one bit away from an open gate
    off = np.where(two[:, None], _TWO_ON[rng.integers(0, 3, count)], _FEWER_ON[rng.integers(0, 4, count)])
    bits[:, :3] = _odd_or_even(anomalous, parity, rng) if parity else np.where(anomalous[:, None], 1, off)
    return Pairs(images.pick(a, rng), images.pick(b, rng), bits, np.where(anomalous, b, a))


def _odd_or_even(anomalous: npt.NDArray[np.bool_], used: int, rng: np.random.Generator) -> Rows:
    """(n, 3) bits, the first ``used`` of which are random with odd parity where anomalous; the others are off."""
    bits = np.zeros((len(anomalous), 3), dtype=np.int64)
    bits[:, :used] = rng.integers(0, 2, (len(anomalous), used))
    bits[:, used - 1] = (bits[:, : used - 1].sum(1) + anomalous) % 2
    return bits


def draw_new(
    images: Images,
    count: int,
    anomalous: bool,
    rng: np.random.Generator,
    taken: set[tuple[int, int]],
    parity: int = 0,
) -> Pairs:
    """``count`` pairs of images that are not ``taken``, in random order; they are taken from now on."""
    kept: list[Pairs] = []
    missing = count
    while missing:
        pairs = draw(images, np.full(missing, anomalous), rng, parity)
        new = []
        for row, key in enumerate(zip(pairs.first.tolist(), pairs.second.tolist())):
            if key not in taken:
                taken.add(key)
                new.append(row)
        kept.append(pairs[np.array(new, dtype=np.int64)])
        missing -= len(new)
    return join(*kept)[rng.permutation(count)]


def with_context(pixels: Tensor, bits: Rows) -> Tensor:
    """(n, 136) what the model sees: image A, image B, context.

    Args:
        pixels: (n, 128) of both images.
        bits: (n, 8).
    """
    return torch.cat([pixels, torch.from_numpy(bits.astype(np.float32))], 1)


def as_inputs(images: Images, pairs: Pairs) -> Inputs:
    """The pairs as inputs of the model, with their blocks, and where they come from as columns."""
    columns = {
        "image A": images.rows[pairs.first],
        "image B": images.rows[pairs.second],
        "answer": pairs.answer,
    }
    return Inputs.of(pairs.table(images), blocks=BLOCKS, columns=columns)


def shifted(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(n, 5, 64) each image as it is, and moved by one pixel right, left, down and up."""
    images = np.pad(pixels.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    moves = [(1, 1), (1, 0), (1, 2), (0, 1), (2, 1)]  # top left corner of the window
    return np.stack([images[:, y : y + 8, x : x + 8].reshape(-1, PIXELS) for y, x in moves], 1)
