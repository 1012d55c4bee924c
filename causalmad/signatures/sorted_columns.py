"""Sorted columns: how large the parts of a signature are, whichever they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.signatures.attribution_patching import AttributionPatching
from causalmad.signatures.base import Column, FittedSignature, Signature, Signatures, State, signatures
from causalmad.signatures.columns import Reduced, by_rank, join
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
from causalmad.signatures.shares import blocks_of
from causalmad.signatures.units import Group


@dataclass(frozen=True)
class Sorted:
    """Columns of a signature in falling order of size, block by block, for units that are not the same everywhere.

    What comes out does not change when the columns of a block change places.

    Args:
        signature: whose columns; by default attribution patching.
        top: how many of the largest of every block, fewer where it has fewer.

    Columns are, per block, the largest by absolute size (signed), the sum over all, and the entropy (nats) of the
    shares of absolute size.

    References:
        Of this project.
    """

    signature: Signature = field(default_factory=AttributionPatching)
    top: int = 8

    def __post_init__(self) -> None:
        require_options(self)
        require_signature(self.signature, "signature")
        if self.top < 1:
            raise FitError(f"top={self.top}", needed="at least 1")

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedSorted:
        """Nothing is fitted but the signature itself."""
        return FittedSorted(self, model, self.signature.fit(model, trusted, seed))

    def restore(self, model: OpenModel, state: State) -> FittedSorted:
        """The fitted signature that wrote ``state``."""
        return FittedSorted(self, model, unpacked((self.signature,), model, state)[0])


@dataclass(frozen=True, eq=False)
class FittedSorted:
    """The sorted columns of a signature of one model.

    Attributes:
        spec: what was fitted.
        model: the model.
        inner: the signature.
    """

    spec: Sorted
    model: OpenModel
    inner: FittedSignature

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the numbers are."""
        return self._sorted(np.zeros((0, len(self.inner.columns)))).columns

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
        """(n, d) sorted columns."""
        known = self.model.inputs(inputs)
        found = self._sorted(on(self.inner, self.model)(known).values.astype(np.float64))
        return signatures(known, found.columns, found.values)

    def state(self) -> State:
        """The state of the signature."""
        return packed((self.inner,))

    def _sorted(self, values: npt.NDArray[np.float64]) -> Reduced:
        members = blocks_of(self.inner.columns)
        return join(
            [
                by_rank(name or "column", values[:, rows], min(self.spec.top, len(rows)), last=False)
                for name, rows in members.items()
            ]
        )
