"""Clean runs: what a batch gives as it is, kept for runs of its rows under edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causalmad.inputs import Batch
from causalmad.models.base import Run
from causalmad.models.recording import Recording, joined
from causalmad.sites import Place


@dataclass(frozen=True, eq=False)
class Clean:
    """A clean run, from which runs of the same rows under edits go on.

    Attributes:
        batch: the inputs.
        logits: (batch, classes).
        recording: what the parts of the model gave; None where nothing was recorded.
        keys: (keys, values) of every layer, each (batch, heads, positions, entries); empty where positions before an
            edited one are computed again.
        values: place -> activation, where some were asked for.
        others: how many rows at the start are there to be tried out on alone.
    """

    batch: Batch
    logits: Tensor
    recording: Recording | None = None
    keys: tuple[tuple[Tensor, Tensor], ...] = ()
    values: Mapping[Place, Tensor] = field(default_factory=dict)
    others: int = 0

    @property
    def numbers(self) -> int:
        """How many numbers are held."""
        tensors = [self.logits, *self.values.values(), *(part for pair in self.keys for part in pair)]
        return sum(map(Tensor.numel, tensors)) + (0 if self.recording is None else self.recording.numbers)


def clean_of(
    batch: Batch, run: Run, recording: Recording | None = None, keys: tuple[tuple[Tensor, Tensor], ...] = ()
) -> Clean:
    """What a clean run gave."""
    if run.logits is None:
        raise RuntimeError("a run with its output has logits")
    return Clean(batch, run.logits, recording, keys, run.values)


def joined_runs(batch: Batch, parts: Sequence[Clean]) -> Clean:
    """The runs of parts of a batch as one."""
    recordings = [part.recording for part in parts if part.recording is not None]
    layers = zip(*(part.keys for part in parts), strict=True) if all(part.keys for part in parts) else ()
    return Clean(
        batch,
        torch.cat([part.logits for part in parts]),
        joined(recordings) if len(recordings) == len(parts) else None,
        tuple((torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in layers),
        {place: torch.cat([part.values[place] for part in parts]) for place in parts[0].values},
    )


def keys_of(cache: Any, batch: Batch) -> tuple[tuple[Tensor, Tensor], ...]:
    """What a cache holds of every layer; nothing where that is not one entry for each column."""
    found = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
    shape = (len(batch), batch.main.shape[1])
    for pair in found:
        if not all(isinstance(x, Tensor) and x.ndim == 4 and (x.shape[0], x.shape[2]) == shape for x in pair):
            return ()
    return tuple((keys, values) for keys, values in found)  # type: ignore[misc]


def without(batch: Batch, column: int) -> Batch:
    """The batch without its first columns."""
    if not column:
        return batch
    width = batch.main.shape[1]

    def last(value: Tensor) -> Tensor:
        return value[:, column:] if value.ndim >= 2 and value.shape[1] == width else value

    fields = {name: last(value) for name, value in batch.fields.items()}
    mask = None if batch.mask is None else batch.mask[:, column:]
    return replace(batch, fields=fields, mask=mask, extra={name: last(value) for name, value in batch.extra.items()})


def beside(first: Batch, second: Batch) -> Batch:
    """The rows of two batches of one width."""
    masks = None if first.mask is None or second.mask is None else torch.cat([first.mask, second.mask])
    return replace(
        first,
        rows=np.concatenate([first.rows, second.rows]),
        fields={name: torch.cat([value, second.fields[name]]) for name, value in first.fields.items()},
        mask=masks,
        extra={name: torch.cat([value, second.extra[name]]) for name, value in first.extra.items()},
        columns={},
        ids=(*first.ids, *second.ids),
    )
