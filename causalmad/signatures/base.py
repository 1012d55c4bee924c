"""What a signature is: per input one row of named numbers that say how its output came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from causalmad.errors import FitError
from causalmad.inputs import Inputs
from causalmad.models import OpenModel


@dataclass(frozen=True)
class Column:
    """The name of one number of a signature.

    Attributes:
        name: unique within the signature.
        site: where in the model, in site form; empty for the input itself.
        unit: what is looked at there: a block, a head, a neuron, a rank.
        position: which token, if one.
        block: the group of columns to which it belongs.
    """

    name: str
    site: str = ""
    unit: str = ""
    position: str = ""
    block: str = ""


@dataclass(frozen=True, repr=False)
class Signatures:
    """Signatures of some inputs.

    Attributes:
        ids: (n,) ids of the inputs.
        columns: (d,) what each number is.
        values: (n, d) float32.
    """

    ids: tuple[str, ...]
    columns: tuple[Column, ...]
    values: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        """How many, and of which columns, in a line."""
        few = [column.name for column in (*self.columns[:1], *self.columns[1:][-1:])]
        return f"Signatures({len(self):,} inputs, {len(self.columns):,} columns: {' ... '.join(few)})"


@dataclass(frozen=True)
class State:
    """What a fitted signature needs to be made again: arrays for ``state.safetensors``, data for ``detector.json``."""

    tensors: Mapping[str, Tensor]
    data: Mapping[str, Any]


class FittedSignature(Protocol):
    """A signature on one model, fitted on trusted inputs."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the numbers are."""
        ...

    def __call__(self, inputs: Any) -> Signatures:
        """Signatures of inputs; a row depends on its own input only."""
        ...

    def state(self) -> State:
        """What :meth:`Signature.restore` needs."""
        ...


class Signature(Protocol):
    """A frozen description of a signature."""

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedSignature:
        """The signature on this model, with whatever it takes from the trusted inputs (means, donors, scales)."""
        ...

    def restore(self, model: OpenModel, state: State) -> FittedSignature:
        """The fitted signature that wrote ``state``."""
        ...


def columns_to_data(columns: tuple[Column, ...]) -> list[dict[str, str]]:
    """Columns as plain data."""
    return [asdict(column) for column in columns]


def columns_from_data(data: Any) -> tuple[Column, ...]:
    """The columns that :func:`columns_to_data` wrote."""
    return tuple(Column(**{key: str(value) for key, value in row.items()}) for row in data)


def require_inputs(trusted: Inputs) -> None:
    """There is something to fit on.

    Raises:
        FitError: when there is not.
    """
    if not len(trusted):
        raise FitError("no trusted inputs at all", needed="at least one input on which the model behaves normally")


def signatures(inputs: Inputs, columns: tuple[Column, ...], values: npt.NDArray[Any]) -> Signatures:
    """A checked result.

    Raises:
        FitError: when a number is NaN or infinite; the first such column and input are named.
    """
    bad = ~np.isfinite(values)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise FitError(
            f"{int(bad.any(1).sum())} of {len(inputs)} inputs have NaN or infinite signatures; the first is input "
            f"{inputs.ids[row]!r} at {columns[column].name!r}",
            causes=["NaN in the inputs or activations", "overflow in half precision"],
            tries=["model.float()", "drop the inputs"],
        )
    return Signatures(inputs.ids, columns, values.astype(np.float32))
