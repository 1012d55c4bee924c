"""Tables of inputs with columns that the model never sees: what the planted tasks draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.inputs import Inputs

Rows: TypeAlias = npt.NDArray[np.int64]
Draw: TypeAlias = Callable[[npt.NDArray[np.bool_], np.random.Generator], "Table"]
"""Draws one row for each entry of a (n,) array, in which True is anomalous."""


@dataclass(frozen=True)
class Table:
    """Inputs and what is known about them.

    Attributes:
        values: (n, positions) tokens, or (n, features) float32.
        columns: name -> (n,) what the model never sees; ``answer`` is the right class.
        blocks: named parts of the features: (start, stop).
    """

    values: npt.NDArray[Any]
    columns: Mapping[str, npt.NDArray[Any]]
    blocks: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Any) -> Table:
        columns = {name: column[rows] for name, column in self.columns.items()}
        return replace(self, values=self.values[rows], columns=columns)

    @property
    def answer(self) -> Tensor:
        """(n,) right classes."""
        return torch.from_numpy(self.columns["answer"])

    def tensor(self) -> Tensor:
        """What the model sees."""
        return torch.from_numpy(self.values)

    def raw(self, tokens: int = -1) -> Tensor:
        """(n, features) the inputs as numbers: tokens as indicators of so many kinds (by default, those here)."""
        values = self.tensor()
        if values.is_floating_point():
            return values.flatten(1)
        return torch.nn.functional.one_hot(values, tokens).flatten(1)

    def as_inputs(self) -> Inputs:
        """The rows as inputs of the model."""
        values = self.tensor()
        if values.is_floating_point():
            return Inputs.of(values, columns=self.columns, blocks=self.blocks)
        return Inputs.of({"input_ids": values}, accepts=("input_ids",), columns=self.columns)


def join(*tables: Table) -> Table:
    """All rows, one table after the other."""
    names = tables[0].columns
    columns = {name: np.concatenate([table.columns[name] for table in tables]) for name in names}
    return Table(np.concatenate([table.values for table in tables]), columns, tables[0].blocks)


def draw_new(draw: Draw, count: int, anomalous: bool, rng: np.random.Generator, taken: set[bytes]) -> Table:
    """``count`` rows of one kind that are not ``taken``, in random order; they are taken from now on."""
    kept: list[Table] = []
    missing = count
    while missing:
        table = draw(np.full(missing, anomalous), rng)
        new = []
        for row, values in enumerate(table.values):
            if values.tobytes() not in taken:
                taken.add(values.tobytes())
                new.append(row)
        kept.append(table[np.array(new, dtype=np.int64)])
        missing -= len(new)
    return join(*kept)[rng.permutation(count)]
