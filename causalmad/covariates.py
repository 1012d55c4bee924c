"""Covariates: what a calibrator asks for by name, known of an input beside its score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.errors import InputsError, nearest
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.models.batching import each_batch


def covariates(names: Sequence[str], model: OpenModel, inputs: Inputs) -> dict[str, npt.NDArray[Any]]:
    """Name -> (n,) values of some inputs.

    Args:
        names: ``class`` (what the model predicts, the argmax of its logits), ``length`` (number of tokens, or size of
            the last axis), or a column of the inputs. A column that has one of the two names comes first.
        model: computes the class; it does not run where no class is asked for.
        inputs: what is described.

    Raises:
        InputsError: when the inputs have no such column, with the nearest three names.
    """
    return {name: _one(name, model, inputs) for name in names}


def _one(name: str, model: OpenModel, inputs: Inputs) -> npt.NDArray[Any]:
    if name in inputs.columns:
        return np.asarray(inputs.columns[name])
    if name == "length":
        return inputs.lengths
    if name == "class":
        return predicted_classes(model, inputs)
    raise InputsError(
        f"no covariate {name!r}: the inputs have no such column",
        needed="a column of the inputs, in trusted and in new ones, or 'class' or 'length'",
        tries=[repr(near) for near in nearest(name, ["class", "length", *inputs.columns])],
    )


def predicted_classes(model: OpenModel, inputs: Inputs) -> npt.NDArray[np.int64]:
    """(n,) the class that the model predicts: the argmax of its logits, at the last token of a sequence."""
    found = np.empty(len(inputs), dtype=np.int64)

    def fill(batch: Batch) -> None:
        found[batch.rows] = model.logits(batch).argmax(-1).cpu().numpy()

    each_batch(model, inputs, None, fill)
    return found
