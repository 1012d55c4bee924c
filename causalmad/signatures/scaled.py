"""Columns on the trusted scale: the last step of every signature that is made of effects."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from causalmad.errors import FitError
from causalmad.inputs import Inputs
from causalmad.signatures.base import Column, Signatures, State, columns_from_data, columns_to_data, signatures
from causalmad.signatures.columns import Reduced, scales_of, signed_log

# How many trusted inputs set the units of the columns; more would cost a second pass over all of them.
_SAMPLE = 128
# Inputs that are worked on together; what is kept for each of them bounds the memory.
CHUNK = 512


def sample(trusted: Inputs, seed: int, donors: Collection[str] = ()) -> Inputs:
    """Some trusted inputs, none of whose content is a donor's: they set the units of the columns.

    Raises:
        FitError: when every trusted input is a donor.
    """
    rows = np.argsort(np.array(trusted.digests), kind="stable")  # their order of arrival decides nothing
    others = [int(row) for row in rows if trusted.digests[row] not in set(donors)]
    if not others:
        raise FitError("every trusted input is a donor", tries=["more trusted inputs", "fewer donors"])
    return trusted[np.random.default_rng([seed, 1]).permutation(others)[:_SAMPLE]]


@dataclass(frozen=True, eq=False)
class Scales:
    """Columns and the trusted median size of each, in whose units its signed logarithm is taken."""

    columns: tuple[Column, ...]
    sizes: npt.NDArray[np.float64]

    @classmethod
    def unknown(cls) -> Scales:
        """Before anything was measured."""
        return cls((), np.ones(0))

    @classmethod
    def of(cls, reduced: Reduced) -> Scales:
        """The scales of some trusted inputs' values."""
        return cls(reduced.columns, scales_of(reduced.values))

    def apply(self, inputs: Inputs, reduce: Callable[[Inputs], Reduced]) -> Signatures:
        """Signatures (n, d) of inputs, worked on in chunks."""
        starts = range(0, len(inputs), CHUNK)
        parts = [reduce(inputs[start : start + CHUNK]).values for start in starts]
        values = np.concatenate(parts) if parts else np.zeros((0, len(self.columns)))
        return signatures(inputs, self.columns, signed_log(values, self.sizes))

    def save(self, state: State) -> State:
        """``state`` with the scales added."""
        data = {**state.data, "columns": columns_to_data(self.columns)}
        return State({**state.tensors, "scales": torch.from_numpy(self.sizes)}, data)

    @classmethod
    def restore(cls, state: State) -> Scales:
        """The scales that :meth:`save` added."""
        return cls(columns_from_data(state.data["columns"]), state.tensors["scales"].numpy())
