"""Who computes: the engines of an extraction, and the one that runs here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.models.batching import within_memory
from causalmad.signatures.base import FittedSignature

Rows: TypeAlias = npt.NDArray[np.int64]
Values: TypeAlias = npt.NDArray[np.float32]
Counted: TypeAlias = Callable[[int], None]

_PIECE = 256


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be computed.

    Attributes:
        signature: the fitted signature.
        spec: of which it is the fit, or None where that is not known.
        model: on which it is fitted.
        inputs: all inputs.
    """

    signature: FittedSignature
    spec: Any
    model: OpenModel
    inputs: Inputs


class Engine(Protocol):
    """Computes the rows of some inputs, wherever that is."""

    def run(self, work: Work, chunks: Iterable[Rows], done: Counted) -> Iterator[tuple[Rows, Values]]:
        """Every chunk with its (rows, d) values, as soon as they are there, in any order.

        Args:
            work: what is computed.
            chunks: which inputs go together; the same chunks give the same bits in every engine.
            done: called with a number of rows that were computed.
        """
        ...


@dataclass(frozen=True)
class Local:
    """Computes in this process, chunk after chunk."""

    def run(self, work: Work, chunks: Iterable[Rows], done: Counted) -> Iterator[tuple[Rows, Values]]:
        """See :class:`Engine`."""
        for rows in chunks:
            yield rows, chunk_values(work.signature, work.model, work.inputs[rows], done)


def chunk_values(signature: FittedSignature, model: OpenModel, inputs: Inputs, done: Counted) -> Values:
    """(n, d) rows of a chunk, computed a few batches at a time."""
    size = model.batch_size * max(_PIECE // model.batch_size, 1)
    found = np.empty((len(inputs), len(signature.columns)), dtype=np.float32)
    for start in range(0, len(inputs), size):
        piece = inputs[start : start + size]
        found[start : start + size] = within_memory(model, partial(signature, piece)).values
        done(len(piece))
    return found
