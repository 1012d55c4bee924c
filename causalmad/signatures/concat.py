"""Concat: several signatures as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from causalmad.catalogue import name_of
from causalmad.config import require_options
from causalmad.errors import FitError, SpecError
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.signatures.activations import Activations
from causalmad.signatures.attribution_patching import AttributionPatching
from causalmad.signatures.base import Column, FittedSignature, Signature, Signatures, State, signatures
from causalmad.signatures.nested import (
    DonorsOf,
    digests_of,
    donors_of,
    groups_of,
    on,
    packed,
    require_signature,
    unpacked,
)
from causalmad.signatures.units import Group


@dataclass(frozen=True)
class Concat:
    """Several signatures beside each other, such as what the model holds and how it came to its answer.

    Args:
        signatures: the parts, in the order of their columns.

    Columns are those of the parts, each in its own unit. Where two parts have a column of the same name, its name
    starts with that of its part; the block of every column does, so that a reference which standardises each block
    can tell the parts apart. Donors of any part are left out of the reference.

    References:
        Of this project.
    """

    signatures: tuple[Signature, ...] = (Activations(), AttributionPatching())

    def __post_init__(self) -> None:
        require_options(self)
        if not isinstance(self.signatures, tuple) or not self.signatures:
            raise FitError(f"signatures={self.signatures!r}", needed="a tuple of at least one signature")
        for spec in self.signatures:
            require_signature(spec, "signatures")

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedConcat:
        """Fit every part on the same trusted inputs, with the same seed."""
        return self._of(model, tuple(spec.fit(model, trusted, seed) for spec in self.signatures))

    def restore(self, model: OpenModel, state: State) -> FittedConcat:
        """The fitted signature that wrote ``state``."""
        return self._of(model, unpacked(self.signatures, model, state))

    def _of(self, model: OpenModel, parts: tuple[FittedSignature, ...]) -> FittedConcat:
        return FittedConcat(model, parts, beside(_labels(self.signatures), [part.columns for part in parts]))


@dataclass(frozen=True, eq=False)
class FittedConcat:
    """Several signatures of one model.

    Attributes:
        model: the model of all.
        parts: the fitted signatures.
        columns: what the numbers are.
    """

    model: OpenModel
    parts: tuple[FittedSignature, ...]
    columns: tuple[Column, ...]

    @property
    def donor_digests(self) -> tuple[str, ...]:
        """Contents of the donors of all parts, which the reference leaves out."""
        return digests_of(self.parts)

    @property
    def groups(self) -> tuple[Group, ...] | None:
        """The units of all parts, for repairs."""
        return groups_of(self.parts)

    @property
    def donors_of(self) -> DonorsOf | None:
        """Donors of an input, of the parts that choose donors for every input."""
        return donors_of(self.parts)

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) signatures, the parts one after the other."""
        known = self.model.inputs(inputs)
        values = [on(part, self.model)(known).values for part in self.parts]
        return signatures(known, self.columns, np.concatenate(values, axis=1))

    def state(self) -> State:
        """The states of the parts."""
        return packed(self.parts)


def beside(labels: Sequence[str], parts: Sequence[Sequence[Column]]) -> tuple[Column, ...]:
    """Columns of all parts: named by their part where names clash, in blocks named by their part always."""
    names = Counter(column.name for columns in parts for column in columns)
    taken = set(names)
    found = []
    for label, columns in zip(labels, parts, strict=True):
        for column in columns:
            name = column.name
            if names[name] > 1:
                name = f"{label}: {name}"
                while name in taken:
                    name = f"{label}: {name}"
                taken.add(name)
            block = f"{label}: {column.block or column.site}".removesuffix(": ")
            found.append(replace(column, name=name, block=block))
    return tuple(found)


def _labels(specs: Sequence[Signature]) -> list[str]:
    """The parts' names in the catalogue, or those of their classes, numbered where they stand twice."""
    names = [_name(spec) for spec in specs]
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(f"{name} {seen[name]}" if names.count(name) > 1 else name)
    return found


def _name(spec: Signature) -> str:
    spec = getattr(spec, "stands_for", spec)  # what only keeps another one's results goes by that one's name
    try:
        return name_of("signatures", spec)
    except SpecError:
        return type(spec).__name__
