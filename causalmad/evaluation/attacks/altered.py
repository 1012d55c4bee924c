"""What an attack on inputs gives: the altered inputs, and whether the model still answers as before."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.inputs import Inputs
from causalmad.models import OpenModel

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Altered:
    """Inputs that were altered to score lower.

    Attributes:
        inputs: as they are now, with their old ids.
        kept: (n,) whether the model answers as it did.
        scores: (budgets, n) the lowest score found so far with the answer kept, as the budget is used up: queries of
            a search, or steps of a gradient. Of a shared change, the scores under the best one so far.
    """

    inputs: Inputs
    kept: npt.NDArray[np.bool_]
    scores: Floats


def with_values(inputs: Inputs, values: Tensor) -> Inputs:
    """The inputs with another main field of the same shape."""
    name = next(iter(inputs.fields))
    return replace(inputs, fields={**inputs.fields, name: values})


def values_of(inputs: Inputs) -> Tensor:
    """(n, ...) the main field; rows of tokens have to be of one length."""
    return inputs.main.clone() if isinstance(inputs.main, Tensor) else torch.stack(list(inputs.main))


def answers(model: OpenModel, inputs: Inputs) -> Tensor:
    """(n,) the class, or next token, that the model thinks likeliest."""
    found = torch.empty(len(inputs), dtype=torch.int64)
    for batch in model.batches(inputs, size=512):
        found[torch.as_tensor(batch.rows)] = model.logits(batch).argmax(-1).cpu()
    return found
