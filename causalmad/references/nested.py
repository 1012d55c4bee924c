"""A reference inside another one: its arrays under a prefix, and the keywords that belong to some columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.errors import FitError, StoreError
from causalmad.references.base import FittedReference

Array = npt.NDArray[np.float64]


def nested_state(prefix: str, fitted: FittedReference) -> dict[str, Array]:
    """The arrays of a fitted reference, as ``prefix:name``.

    Raises:
        StoreError: where it has none, as scikit-learn's estimators.
    """
    if not hasattr(fitted, "state"):
        raise StoreError(
            f"a fitted {type(fitted).__name__} cannot be saved: it has no state()",
            tries=["causalmad.references.Mahalanobis()", "a scikit-learn estimator, which is fitted again on load"],
        )
    return {f"{prefix}:{key}": value for key, value in fitted.state().items()}


def split(state: Mapping[str, Array], prefix: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """The other arrays of a state, and those that `nested_state` wrote under this prefix."""
    start = f"{prefix}:"
    own = {key: value for key, value in state.items() if not key.startswith(start)}
    return own, {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}


def restored_inside(reference: Any, state: Mapping[str, Array]) -> FittedReference:
    """The fitted reference inside another one, from its arrays.

    Raises:
        StoreError: where the reference cannot be restored.
    """
    if not hasattr(reference, "restore"):
        raise StoreError(f"a {type(reference).__name__} cannot be restored from arrays", needed="restore(state)")
    fitted: FittedReference = reference.restore(state)
    return fitted


def checked(texts: Sequence[str] | None, columns: int, what: str) -> tuple[str, ...]:
    """The group or name of every column.

    Raises:
        FitError: where there are not as many as columns.
    """
    found = tuple(str(text) for text in (() if texts is None else texts))
    if texts is not None and len(found) != columns:
        raise FitError(f"got {len(found)} {what} for {columns} columns", needed=f"one of the {what} for every column")
    return found
