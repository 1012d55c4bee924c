"""Input only: which tokens or which numbers came in, the control for everything that looks at the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from causalmad.config import require_options
from causalmad.errors import FitError, InputsError
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.signatures.base import (
    Column,
    Signatures,
    State,
    columns_from_data,
    columns_to_data,
    require_inputs,
    signatures,
)


@dataclass(frozen=True)
class InputOnly:
    """Token counts or raw numbers of the input: the control that never runs the model.

    Where it tells anomalies, the task is one of unusual inputs and says little about mechanisms.

    Args:
        most: the most columns. Of the tokens, the most frequent trusted ones have a column each; vectors and images
            that are wider are averaged over stretches or patches, which the columns name.

    Columns are, for tokens, the count of each of these tokens, the count of all others, and the number of tokens (other
    fields that the model is called with play no part); for everything else the numbers of all fields, in their own
    units.

    References:
        A control of this project.
    """

    most: int = 4096

    def __post_init__(self) -> None:
        require_options(self)
        if self.most < 2:
            raise FitError(f"most={self.most}", needed="at least 2 columns")

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedInputOnly:
        """Learn which tokens there are, or how the numbers are arranged.

        Raises:
            FitError: when there is no input.
        """
        require_inputs(trusted)
        if trusted.tokens:
            words = frequent(trusted, self.most - 2)
            units = [*(f"token {word}" for word in words), "other tokens", "length"]
            columns = tuple(Column(f"input {unit}", unit=unit, block="input") for unit in units)
            return FittedInputOnly(model, columns, words, ())
        shapes = tuple(tuple(rows[0].shape) for rows in trusted.fields.values())
        share = max(self.most // len(shapes), 1)
        grids = tuple(_grid(shape, share) for shape in shapes)
        fields = [f"input {name}".removesuffix(" 0") if isinstance(name, int) else name for name in trusted.fields]
        names = [f"{name}[{cell}]" for name, grid in zip(fields, grids, strict=True) for cell in _cells(grid)]
        columns = tuple(Column(name, unit=name, block="input") for name in names)
        return FittedInputOnly(model, columns, np.empty(0, np.int64), tuple(zip(shapes, grids, strict=True)))

    def restore(self, model: OpenModel, state: State) -> FittedInputOnly:
        """The fitted signature that wrote ``state``."""
        shapes = tuple(
            (tuple(map(int, shape)), (_sizes(before), _sizes(after))) for shape, (before, after) in state.data["shapes"]
        )
        columns = columns_from_data(state.data["columns"])
        return FittedInputOnly(model, columns, state.tensors["words"].numpy(), shapes)


# Sizes of the last two axes and of everything before them, before and after averaging: (leading, height, width).
_Grid = tuple[tuple[int, int, int], tuple[int, int, int]]


@dataclass(frozen=True, eq=False)
class FittedInputOnly:
    """Raw inputs of one kind.

    Attributes:
        model: takes the inputs, and is never run.
        columns: what the numbers are.
        words: (words,) sorted ids of the tokens that have a column; empty where the inputs are no tokens.
        shapes: of each field, its shape and how it is averaged; empty for tokens.
    """

    model: OpenModel
    columns: tuple[Column, ...]
    words: npt.NDArray[np.int64]
    shapes: tuple[tuple[tuple[int, ...], _Grid], ...]

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) counts or numbers; the model is not run."""
        known = self.model.inputs(inputs)
        if not len(known):
            return signatures(known, self.columns, np.empty((0, len(self.columns))))
        return signatures(known, self.columns, self._numbers(known) if self.shapes else self._counts(known))

    def state(self) -> State:
        """The tokens or the shapes, and the columns."""
        data = {"shapes": [list(pair) for pair in self.shapes], "columns": columns_to_data(self.columns)}
        return State({"words": torch.from_numpy(self.words)}, data)

    def _counts(self, inputs: Inputs) -> npt.NDArray[np.float64]:
        if not inputs.tokens:
            raise InputsError("numbers, where tokens were trusted", needed="sequences of token ids")
        return np.column_stack([occurrences(inputs, self.words)[:, 0], inputs.lengths])

    def _numbers(self, inputs: Inputs) -> npt.NDArray[np.float64]:
        if len(inputs.fields) != len(self.shapes):
            raise InputsError(f"inputs of {len(inputs.fields)} fields", needed=f"{len(self.shapes)}, as trusted ones")
        parts = []
        for rows, (shape, grid) in zip(inputs.fields.values(), self.shapes, strict=True):
            if inputs.tokens or not isinstance(rows, Tensor) or tuple(rows.shape[1:]) != shape:
                found = tuple(rows[0].shape)
                raise InputsError(f"an input of shape {found}", needed=f"the shape of the trusted inputs, {shape}")
            (leading, height, width), after = grid
            folded = rows.cpu().double().reshape(len(inputs), leading, height, width)
            parts.append((folded if grid[0] == after else adaptive_avg_pool2d(folded, after[1:])).flatten(1))
        return torch.cat(parts, 1).numpy()


def frequent(inputs: Inputs, most: int) -> npt.NDArray[np.int64]:
    """The most frequent token ids of some inputs, sorted; of equally frequent ones the smaller."""
    words, counts = np.unique(torch.cat(list(inputs.main)).cpu().numpy(), return_counts=True)
    return np.sort(words[np.argsort(-counts, kind="stable")[:most]]).astype(np.int64)


def occurrences(inputs: Inputs, words: npt.NDArray[np.int64], places: int = 0) -> npt.NDArray[np.float64]:
    """(n, places, words + 1) which token is where, the last word being any other; (n, 1, words + 1) without places.

    Args:
        inputs: token ids.
        words: sorted ids.
        places: the length of every input, or 0 to count tokens wherever they are.
    """
    tokens = torch.cat(list(inputs.main)).cpu().numpy()
    at = np.searchsorted(words, tokens)
    at = np.where(np.append(words, -1)[at] == tokens, at, len(words))
    rows = np.repeat(np.arange(len(inputs)), inputs.lengths)
    where = np.tile(np.arange(places), len(inputs)) if places else np.zeros(len(rows), dtype=np.int64)
    found = np.zeros((len(inputs), max(places, 1), len(words) + 1))
    np.add.at(found, (rows, where, at), 1.0)
    return found


def _grid(shape: tuple[int, ...], most: int) -> _Grid:
    """How a field of this shape is averaged over its last two axes so that at most ``most`` numbers are left."""
    height, width = ((1, 1, *shape)[-2:]) if len(shape) > 1 else (1, math.prod(shape))
    leading = math.prod(shape[:-2])
    if leading > most:  # nothing but a long row of numbers
        leading, height, width = 1, 1, math.prod(shape)
    room = most // leading
    if height * width <= room:
        return (leading, height, width), (leading, height, width)
    if height == 1:
        return (leading, height, width), (leading, 1, room)
    rows = min(max(int(math.sqrt(room * height / width)), 1), height, room)
    return (leading, height, width), (leading, rows, min(room // rows, width))


def _sizes(row: Sequence[int]) -> tuple[int, int, int]:
    leading, height, width = map(int, row)
    return leading, height, width


def _cells(grid: _Grid) -> list[str]:
    """Name of every number of a field: its place, or the stretch of places over which it is the mean."""
    (leading, *before), (_, *after) = grid
    ranges = [[str(i) for i in range(leading)]] if leading > 1 else []
    ranges += [
        _spans(a, b) for a, b in zip(before, after, strict=True) if a > 1 or not (leading > 1 or max(before) > 1)
    ]
    names = [""]
    for axis in ranges:
        names = [f"{name},{place}" if name else place for name in names for place in axis]
    return names


def _spans(size: int, bins: int) -> list[str]:
    """``3`` for single places, ``0:4`` for the places of which adaptive pooling takes the mean."""
    if size == bins:
        return [str(i) for i in range(size)]
    return [f"{i * size // bins}:{-(-(i + 1) * size // bins)}" for i in range(bins)]
