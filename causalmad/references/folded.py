"""One reference per fold: each is fitted without its own fold, and so scores rows that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.errors import InputsError, StoreError
from causalmad.references.base import FittedReference
from causalmad.references.estimators import fit_reference

Array = npt.NDArray[np.float64]

NO_FOLD = -1  # rows that every fold's reference is fitted on


@dataclass(frozen=True, eq=False)
class FittedFolds:
    """References that were fitted on all trusted rows but one fold each.

    Args:
        members: the reference without fold 0, without fold 1, ...
    """

    members: tuple[FittedReference, ...]

    def score_samples(self, X: npt.ArrayLike) -> Array:
        """Normality (n,): the mean over the folds' references; higher = more normal."""
        return np.asarray(self.each(X).mean(axis=1), dtype=np.float64)

    def each(self, X: npt.ArrayLike) -> Array:
        """Normality (n, folds) under every fold's reference.

        Raises:
            InputsError: where a reference gives no number for a row.
        """
        scores = np.stack([np.asarray(one.score_samples(X), dtype=np.float64) for one in self.members], axis=1)
        if np.isnan(scores).any():
            raise InputsError("a reference gave NaN", needed="one number for each row")
        return scores

    def state(self) -> dict[str, Array]:
        """Arrays of all members, with the fold before the name.

        Raises:
            StoreError: where a member has none.
        """
        kept: dict[str, Array] = {}
        for fold, one in enumerate(self.members):
            if not hasattr(one, "state"):
                raise StoreError(f"a fitted {type(one).__name__} has no state()", needed="to be fitted again on load")
            kept |= {f"{fold}:{name}": array for name, array in one.state().items()}
        return kept


def fit_folds(reference: object, X: npt.ArrayLike, folds: npt.NDArray[np.int64], **given: Any) -> FittedFolds:
    """The reference fitted once without each fold.

    Args:
        reference: see :func:`causalmad.references.estimators.fit_reference`.
        X: (n, d) trusted rows.
        folds: (n,) fold of every row, 0, 1, ...; -1 for rows on which every fit stands.
        given: what else ``fit_reference`` takes; ``classes`` are those of all rows.

    Raises:
        StoreError: when the folds, as they were read from a file, are not that.
    """
    rows, classes = np.asarray(X), given.pop("classes", None)
    known = set(folds.ravel().tolist()) - {NO_FOLD}
    if (
        folds.shape != (len(rows),)
        or folds.dtype.kind != "i"
        or not known
        or {0, len(known) - 1} - {min(known), max(known)}
    ):
        raise StoreError(f"folds of shape {folds.shape} for {len(rows)} rows", needed="0, 1, ... without a gap, or -1")
    members = []
    for fold in range(int(folds.max()) + 1):
        kept = folds != fold
        own = None if classes is None else np.asarray(classes)[kept]
        members.append(fit_reference(reference, rows[kept], classes=own, **given))
    return FittedFolds(tuple(members))


def restore_folds(reference: Any, state: Mapping[str, Array]) -> FittedFolds:
    """The fit that ``state`` was taken from.

    Raises:
        StoreError: where a fold is missing, or a member cannot be restored.
    """
    parts: dict[str, dict[str, Array]] = {}
    for key, array in state.items():
        fold, _, name = key.partition(":")
        parts.setdefault(fold, {})[name] = array
    if not parts or set(parts) != {str(fold) for fold in range(len(parts))}:
        raise StoreError(f"the state of the folds holds {sorted(parts)}", needed="folds 0, 1, ... without a gap")
    return FittedFolds(tuple(reference.restore(parts[str(fold)]) for fold in range(len(parts))))
