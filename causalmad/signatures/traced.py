"""Your own nnsight code as a signature: whatever it saves inside a trace becomes the columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.config import require_options
from causalmad.errors import SpecError
from causalmad.inputs import Batch, Inputs
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

Traceable = Callable[[Any, Any], Tensor | Mapping[str, Tensor]]


@dataclass(frozen=True)
class Traced:
    """Columns that your own nnsight code reads, computes or provokes inside a trace of the model.

    Args:
        function: ``function(model, tracer)`` with nnsight's wrapper of the model and the trace that it is called in;
            it returns a tensor (batch, ...) or a dictionary of such tensors. It runs once for every batch, and may do
            whatever nnsight allows: read (``model.transformer.h[3].output``), edit, take gradients.
        gradients: whether autograd is on.

    Columns are named after the keys, with an index where a tensor has more than one number for an input. Inputs that
    are tokens are padded at ``open_model(model).side`` (left for causal models, so that ``[:, -1]`` is the last real
    token), and their number of positions differs between batches.

    Example:
        >>> def middle(model, tracer):
        ...     return {"middle": model[1].output, "logits": model.output}
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> import causalmad as cm
        >>> fitted = Traced(middle).fit(cm.open_model(model), Inputs.of(torch.ones(5, 4)))
        >>> [column.name for column in fitted.columns]
        ['middle[0]', 'middle[1]', 'middle[2]', 'logits[0]', 'logits[1]']

    References:
        nnsight: Fiotto-Kaufman et al. 2024, arXiv 2407.14561.
    """

    function: Traceable | None = None
    gradients: bool = False

    def __post_init__(self) -> None:
        require_options(self)
        if self.function is not None and not callable(self.function):
            raise SpecError(
                f"function={self.function!r} is not a function",
                needed="function(model, tracer) that returns a tensor or a dictionary of tensors",
                tries=["causalmad.signatures.Activations(...) for activations without code"],
            )

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedTraced:
        """Nothing is fitted but the names of the columns, which one input shows.

        Raises:
            FitError: when there is no input.
            SpecError: when the function returns something else than tensors with a row for every input, or asks for
                values in another order than they are computed. Its own errors stay what they are.
        """
        require_inputs(trusted)
        raw = FittedTraced(self, model, self._code(), ())
        (batch,) = model.batches(trusted[:1])
        return FittedTraced(self, model, raw.function, tuple(_columns(raw.trace(batch))))

    def restore(self, model: OpenModel, state: State) -> FittedTraced:
        """The fitted signature that wrote ``state``."""
        return FittedTraced(self, model, self._code(), columns_from_data(state.data["columns"]))

    def _code(self) -> Traceable:
        if self.function is None:
            raise SpecError("traced without a function", needed="your own code", tries=["Traced(function)"])
        return self.function


@dataclass(frozen=True, eq=False)
class FittedTraced:
    """Your own nnsight code on one model."""

    spec: Traced
    model: OpenModel
    function: Traceable
    columns: tuple[Column, ...]

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) signatures; one trace a batch."""
        known = self.model.inputs(inputs)
        values: npt.NDArray[np.float32] = np.empty((len(known), len(self.columns)), dtype=np.float32)
        names = [column.name for column in self.columns]
        with self.model.quiet():
            for batch in self.model.batches(known):
                found = self.trace(batch)
                here = [column.name for column in _columns(found)]
                if here != names:
                    other = next((name for name in [*here, *names] if (name in here) != (name in names)), here[:1])
                    raise SpecError(
                        f"{_name(self.function)} gave {len(here)} columns for this batch and {len(names)} before; "
                        f"{other!r} is in one of them only",
                        needed="the same tensors for every input, whatever its length",
                        tries=["read one position, such as [:, -1]", "a mean over positions"],
                    )
                rows = torch.cat([value.reshape(len(batch), -1).float() for value in found.values()], 1)
                values[batch.rows] = rows.cpu().numpy()
        return signatures(known, self.columns, values)

    def state(self) -> State:
        """The columns; there are no arrays."""
        return State({}, {"columns": columns_to_data(self.columns)})

    def trace(self, batch: Batch) -> dict[str, Tensor]:
        """Name -> (batch, ...) tensor, as the function returned them."""
        from causalmad.models.traces import traced

        name = _name(self.function)
        result = traced(self.model, batch, self.function, self.spec.gradients)
        found = dict(result) if isinstance(result, Mapping) else {name: result}
        for key, value in found.items():
            if not isinstance(value, Tensor) or not value.ndim or len(value) != len(batch):
                shape = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
                raise SpecError(
                    f"{name}(model, tracer) gave {shape} as {key!r}",
                    needed=f"a tensor with a row for each of the {len(batch)} inputs",
                    tries=["module.output[0] where a module returns a tuple"],
                )
        if not found:
            raise SpecError(f"{name}(model, tracer) gave no tensors", needed="at least one")
        return {str(key): value.detach() for key, value in found.items()}


def _columns(found: Mapping[str, Tensor]) -> list[Column]:
    """One column for every entry of a row of every tensor."""
    columns = []
    for key, value in found.items():
        shape = value.shape[1:]
        for index in np.ndindex(*shape):
            unit = ",".join(map(str, index))
            columns.append(Column(f"{key}[{unit}]" if shape else key, unit=unit, block=key))
    return columns


def _name(function: Traceable) -> str:
    return getattr(function, "__name__", type(function).__name__)
