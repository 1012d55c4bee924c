"""How rows of different lengths share a run: tried out on a model, and not assumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from torch import Tensor

from causalmad.errors import CausalmadError
from causalmad.inputs import Inputs
from causalmad.models.alike import alike
from causalmad.models.batching import Batching, out_of_memory

if TYPE_CHECKING:
    from causalmad.models.base import OpenModel

Way: TypeAlias = tuple[str, ...]
"""Names of the arguments that tell a model what is padding."""


def way_of(model: OpenModel, inputs: Inputs) -> Way:
    """The arguments that tell a model what is padding, so that its logits are those of each input alone.

    Found out on the first inputs that differ in length, with a few runs of one row, and kept with the model's batches.

    Args:
        model: the opened model.
        inputs: what it is to be run on.

    Raises:
        ModelError: when memory runs out.
    """
    usual = next(_ways(model))
    if model.batching.padding is not None:
        return model.batching.padding
    if not (inputs.tokens and "attention_mask" in model.accepts) or inputs.lengths.min() == inputs.lengths.max():
        return usual
    model.batching.padding = _tried(model, inputs) or usual
    return model.batching.padding


def _ways(model: OpenModel) -> Iterator[Way]:
    """What a model can be told, the likeliest first.

    Padding at the left moves the tokens: models that count positions by columns have to be told where each one is.
    Others look for the padding themselves, and count from another number than zero (RoBERTa and its relatives).
    """
    if "position_ids" in model.needs or ("position_ids" in model.accepts and model.side == "left"):
        yield ("attention_mask", "position_ids")
    if "position_ids" not in model.needs:
        yield ("attention_mask",)


def _tried(model: OpenModel, inputs: Inputs) -> Way | None:
    """The first way in which the shortest row has the same logits beside the longest as alone; None where none has."""
    from causalmad.models.base import OpenModel

    pair = inputs[[int(inputs.lengths.argmin()), int(inputs.lengths.argmax())]]
    # Not a view of another kind: it may keep a graph of every run, or draw dropout.
    plain = OpenModel(**{field.name: getattr(model, field.name) for field in fields(OpenModel)}).plain
    ways = list(_ways(model))
    alone = _logits(plain, pair[:1], ways[0])
    if alone is None:
        return ways[0]
    for way in ways:
        beside = _logits(plain, pair, way)
        if beside is not None and alike(beside, alone, model.dtype):
            return way
    return None


def _logits(model: OpenModel, inputs: Inputs, way: Way) -> Tensor | None:
    """(1, classes) logits of the first of some inputs; None where there are none, as of a model without a head."""
    view = replace(model, batching=Batching(len(inputs), padding=way))
    try:
        return view.logits(next(view.batches(inputs)).take(np.array([0])))
    except CausalmadError as error:
        if out_of_memory(error):
            raise
        return None
