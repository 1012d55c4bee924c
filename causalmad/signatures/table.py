"""The loop that most signatures share: batch by batch, one row of numbers per input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from causalmad.errors import ModelError
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.models.batching import each_batch


def table(
    model: OpenModel, inputs: Inputs, width: int, rows: Callable[[Batch], Tensor], *, size: int | None = None
) -> npt.NDArray[np.float64]:
    """(n, width) numbers of inputs, in the order of the inputs.

    Args:
        model: kept quiet (eval mode, frozen, locked) for as long as it lasts.
        inputs: what the numbers are of.
        width: columns.
        rows: from a batch to its (batch, width) numbers, which depend on nothing but each input itself.
        size: inputs a batch, at most; by default the model's.

    Raises:
        ModelError: when a batch gives other numbers than that, as a model does whose output changes its shape.
    """
    values = np.empty((len(inputs), width))

    def fill(batch: Batch) -> None:
        found = rows(batch)
        if found.shape != (len(batch), width):
            raise ModelError(
                f"{tuple(found.shape)} numbers for {len(batch)} inputs and {width} columns",
                causes=["a model whose output or activations change their shape from input to input"],
            )
        values[batch.rows] = found.detach().double().cpu().numpy()

    with model.quiet():
        each_batch(model, inputs, size, fill)
    return values
