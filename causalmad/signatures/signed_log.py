"""Signed log: the columns of a signature on a scale that heavy tails do not dominate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from causalmad.config import require_options
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.signatures.attribution_patching import AttributionPatching
from causalmad.signatures.base import Column, FittedSignature, Signature, Signatures, State
from causalmad.signatures.columns import Reduced
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
from causalmad.signatures.scaled import Scales, sample
from causalmad.signatures.units import Group


@dataclass(frozen=True)
class SignedLog:
    """Signed logarithm of every column of a signature, in units of its trusted median size.

    Args:
        signature: whose columns; by default attribution patching without its own logarithm.

    Columns are sign(x) log(1 + |x| / s), with s the median absolute size of the column's non-zero values on trusted
    inputs (about 128 of them, no donors): linear near zero, logarithmic in the tails.

    References:
        Of this project.
    """

    signature: Signature = field(default_factory=lambda: AttributionPatching(log=False))

    def __post_init__(self) -> None:
        require_options(self)
        require_signature(self.signature, "signature")

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedSignedLog:
        """Fit the signature, and take the size of its columns from trusted inputs."""
        inner = self.signature.fit(model, trusted, seed)
        some = sample(trusted, seed, digests_of((inner,)))
        return FittedSignedLog(model, inner, Scales.of(_reduced(inner, some)))

    def restore(self, model: OpenModel, state: State) -> FittedSignedLog:
        """The fitted signature that wrote ``state``."""
        (inner,) = unpacked((self.signature,), model, state)
        return FittedSignedLog(model, inner, Scales.restore(state))


@dataclass(frozen=True, eq=False)
class FittedSignedLog:
    """The signed logarithm of a signature of one model.

    Attributes:
        model: the model.
        inner: the signature.
        scales: its columns and their units.
    """

    model: OpenModel
    inner: FittedSignature
    scales: Scales

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the numbers are."""
        return self.scales.columns

    @property
    def donor_digests(self) -> tuple[str, ...]:
        """Contents of the donors, which the reference leaves out."""
        return digests_of((self.inner,))

    @property
    def groups(self) -> tuple[Group, ...] | None:
        """The units of the signature, for repairs."""
        return groups_of((self.inner,))

    @property
    def donors_of(self) -> DonorsOf | None:
        """Donors of an input, where the signature chooses donors for every input."""
        return donors_of((self.inner,))

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) logarithms."""
        inner = on(self.inner, self.model)
        return self.scales.apply(self.model.inputs(inputs), lambda some: _reduced(inner, some))

    def state(self) -> State:
        """The state of the signature, and the units of its columns."""
        return self.scales.save(packed((self.inner,)))


def _reduced(inner: FittedSignature, inputs: Inputs) -> Reduced:
    return Reduced(inner.columns, inner(inputs).values.astype(float))
