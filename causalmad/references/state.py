"""What a fitted reference keeps: arrays that cannot be changed, and their check when they come back from a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from causalmad.errors import StoreError

Array = npt.NDArray[np.float64]
Shapes: TypeAlias = Mapping[str, tuple[str | int, ...]]


def restored(
    spec: object,
    state: Mapping[str, npt.ArrayLike],
    shapes: Shapes,
    positive: Collection[str] = (),
) -> dict[str, Array]:
    """The arrays of a state (float64 copies), once they are what ``spec`` saves.

    Args:
        spec: the specification that restores, for the messages.
        state: arrays by name.
        shapes: name -> shape; a letter stands for one size in all the arrays, of at least 1.
        positive: names of arrays whose numbers are all above zero.

    Raises:
        StoreError: where an array is missing, too many, of another shape, or holds broken numbers.
    """
    if set(state) != set(shapes):
        raise StoreError(f"the state of {spec} holds {sorted(state)}", needed=f"exactly {sorted(shapes)}")
    kept = {}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        try:
            array = np.array(state[name], dtype=np.float64, order="C")
        except (TypeError, ValueError) as error:
            raise StoreError(f"{name} is no array of numbers: {error}") from error
        if array.ndim == len(shape):
            for letter, size in zip(shape, array.shape):
                if isinstance(letter, str) and size:
                    sizes.setdefault(letter, size)
        needed = tuple(sizes.get(size, 1) if isinstance(size, str) else size for size in shape)
        if array.shape != needed or not np.isfinite(array).all():
            raise StoreError(f"{name} has shape {array.shape}", needed=f"{needed} finite numbers")
        if name in positive and not (array > 0).all():
            raise StoreError(f"{name} holds numbers that are not above zero", needed="numbers above zero")
        kept[name] = array
    return kept


def frozen(*arrays: npt.NDArray[np.generic]) -> None:
    """Make arrays read-only, so that a fit cannot be changed."""
    for array in arrays:
        array.setflags(write=False)
