"""Memo: signatures that several detectors share are computed once, for one model and one set of inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from causalmad.detector import Detector
from causalmad.errors import FitError
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.signatures import Concat
from causalmad.signatures.base import Column, FittedSignature, Signature, Signatures, State

T = TypeVar("T")


@dataclass(eq=False)
class Memo:
    """What was computed for one model, and how long it took.

    Signatures are deterministic, so that a detector gets the same numbers from a memo as without one, to the bit.

    Attributes:
        spared: seconds that were not spent again so far; whoever reports times adds them, so that a detector's time is
            what it would take alone.
    """

    spared: float = 0.0
    _module: object = None
    _known: dict[Hashable, tuple[Any, float]] = field(default_factory=dict)

    def of(self, detector: Detector) -> Detector:
        """The detector, with a signature that remembers, each part of a `Concat` by itself."""
        return replace(detector, signature=self._remembering(detector.signature))

    def require(self, model: OpenModel) -> None:
        """The model is the one whose signatures are kept here; the first one is.

        Raises:
            FitError: when it is another one.
        """
        if self._module is None:
            self._module = model.module
        if self._module is not model.module:
            raise FitError(
                f"a memo of another model than {model.name}", needed="a memo for each model", tries=["Memo()"]
            )

    def recall(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What was computed under a key, or now is; what fails is not remembered."""
        if key in self._known:
            found, seconds = self._known[key]
            self.spared += seconds
        else:
            before, started = self.spared, time.perf_counter()
            found = compute()
            # What this took alone: its own time, and that of the parts which it found in the memo.
            self._known[key] = found, time.perf_counter() - started + self.spared - before
        result: T = found
        return result

    def _remembering(self, spec: Signature) -> Signature:
        if isinstance(spec, Concat):
            return replace(spec, signatures=tuple(map(self._remembering, spec.signatures)))
        return Remembering(spec, self) if _hashable(spec) else spec


@dataclass(frozen=True)
class Remembering:
    """A signature whose fits and rows are kept in a memo.

    Attributes:
        signature: what is computed.
        memo: where it is kept; for one model.
    """

    signature: Signature
    memo: Memo

    @property
    def stands_for(self) -> Signature:
        """What columns are named after."""
        return self.signature

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> Remembered:
        """The fit, computed at most once for these inputs and this seed."""
        self.memo.require(model)
        key = (self.signature, seed, trusted.ids, trusted.digests)
        return self.memo.recall(key, lambda: Remembered(self.signature.fit(model, trusted, seed), self.memo, key))

    def restore(self, model: OpenModel, state: State) -> FittedSignature:
        """The fitted signature that wrote ``state``; nothing is kept."""
        return self.signature.restore(model, state)


@dataclass(frozen=True, eq=False)
class Remembered:
    """A fitted signature whose rows are kept in a memo; all else is its own.

    Attributes:
        inner: what was fitted.
        memo: where rows are kept.
        key: of the fit.
    """

    inner: FittedSignature
    memo: Memo
    key: Hashable

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the numbers are."""
        return self.inner.columns

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) rows of these inputs in this order, computed at most once."""
        known: Inputs = inputs
        return self.memo.recall((self.key, known.ids, known.digests), lambda: self.inner(known))

    def state(self) -> State:
        """What the signature's ``restore`` needs."""
        return self.inner.state()

    def __getattr__(self, name: str) -> Any:
        """Donors, units and whatever else a signature may have."""
        if name == "inner":  # not there yet while an object is copied
            raise AttributeError(name)
        return getattr(self.inner, name)


def _hashable(spec: object) -> bool:
    try:
        hash(spec)
    except TypeError:
        return False
    return True
