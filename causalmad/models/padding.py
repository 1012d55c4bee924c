"""How rows of different lengths share a run: tried out on a model, and not assumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from torch import Tensor

from causalmad.errors import CausalmadError, InputsError
from causalmad.inputs import Batch, Inputs
from causalmad.models.alike import alike
from causalmad.models.batching import Batching, out_of_memory

if TYPE_CHECKING:
    from causalmad.models.base import OpenModel

Way: TypeAlias = tuple[str, ...]
"""Names of the arguments that tell a model what is padding."""


def way_of(model: OpenModel, inputs: Inputs) -> Way:
    """The arguments that tell a model what is padding, so that its logits are those of each input alone.

    None at all for a model that nothing keeps from reading the padding: some take an ``attention_mask`` and ignore it,
    as recurrent ones do, or parts of them do. Then only rows of one length share a batch. Found out on the first inputs
    that differ in length, with a few runs of one row, and kept with the model's batches.

    Args:
        model: the opened model.
        inputs: what it is to be run on.

    Raises:
        ModelError: when memory runs out.
    """
    known = model.batching.padding
    if model.side in known:
        return known[model.side]
    if not (inputs.tokens and inputs.ragged and "attention_mask" in model.accepts):
        return next(_ways(model))
    known[model.side] = _tried(model, inputs)
    return known[model.side]


def _ways(model: OpenModel) -> Iterator[Way]:
    """What a model can be told, the likeliest first.

    Padding at the left moves the tokens: models that count positions by columns have to be told where each one is.
    Others look for the padding themselves, and count from another number than zero (RoBERTa and its relatives).
    """
    if "position_ids" in model.needs or ("position_ids" in model.accepts and model.side == "left"):
        yield ("attention_mask", "position_ids")
    if "position_ids" not in model.needs:
        yield ("attention_mask",)


def apart(model: OpenModel, inputs: Inputs) -> str:
    """Why only rows of one length share a batch; empty where others do as well."""
    if "attention_mask" not in model.accepts:
        return f"{model.name} takes no attention_mask"
    return "" if way_of(model, inputs) else f"{model.name} gives an input other logits beside padding than alone"


def one_batch(
    model: OpenModel, inputs: Inputs, what: str = "inputs", error: type[CausalmadError] = InputsError
) -> Batch:
    """All inputs as one batch.

    Args:
        model: the opened model.
        inputs: at least one.
        what: they are called in the message.
        error: what is raised, when they differ in length and such rows cannot share a batch.
    """
    batches = list(model.batches(inputs, size=len(inputs)))
    if len(batches) > 1:
        raise error(
            f"{what} of {len(batches)} lengths cannot share a run: {apart(model, inputs)}",
            tries=["inputs of one length", "a model whose forward takes attention_mask, and heeds it"],
        )
    return batches[0]


def _tried(model: OpenModel, inputs: Inputs) -> Way:
    """The first way in which the shortest row has the same logits beside the longest as alone; empty where none has."""
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
    return ()


def _logits(model: OpenModel, inputs: Inputs, way: Way) -> Tensor | None:
    """(1, classes) logits of the first of some inputs; None where there are none, as of a model without a head."""
    view = replace(model, batching=Batching(len(inputs), padding={model.side: way}))
    try:
        return view.logits(next(view.batches(inputs)).take(np.array([0])))
    except CausalmadError as error:
        if out_of_memory(error):
            raise
        return None
