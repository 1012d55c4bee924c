"""Shares: where a signature has its weight, whatever its size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.signatures.attribution_patching import AttributionPatching
from causalmad.signatures.base import Column, FittedSignature, Signature, Signatures, State, signatures
from causalmad.signatures.columns import Reduced, signed_log
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

Floats = npt.NDArray[np.float64]

_SMALLEST = 1e-6  # of the trusted median: what is below is rounding, and its shares would be noise


@dataclass(frozen=True)
class Shares:
    """Every column of a signature as a share of the sum of absolute values, whose size is a column of its own.

    Args:
        signature: whose columns; by default attribution patching as it comes, in units of the target.
        of: ``block``, the sum over the columns of the same block, or ``all``, over all columns (sensible only where all
            are in one unit).

    Columns are the signed shares, and for every block the log norm, log(1 + total / s) with s the trusted median total.
    Where a total is zero all shares are.

    References:
        Of this project.
    """

    signature: Signature = field(default_factory=lambda: AttributionPatching(normalise=False, log=False))
    of: Literal["block", "all"] = "block"

    def __post_init__(self) -> None:
        require_options(self)
        require_signature(self.signature, "signature")
        if self.of not in ("block", "all"):
            raise FitError(f"of={self.of!r}", needed="'block' or 'all'")

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedShares:
        """Fit the signature, and take the usual totals from trusted inputs (about 128 of them, no donors)."""
        inner = self.signature.fit(model, trusted, seed)
        members = blocks_of(inner.columns if self.of == "block" else ())
        some = sample(trusted, seed, digests_of((inner,)))
        norms = tuple(Column(f"log norm {name}".strip(), unit=name, block="log norm") for name in _names(members))
        totals = _totals(inner(some).values.astype(np.float64), members)
        return FittedShares(self, model, inner, Scales.of(Reduced(norms, totals)))

    def restore(self, model: OpenModel, state: State) -> FittedShares:
        """The fitted signature that wrote ``state``."""
        (inner,) = unpacked((self.signature,), model, state)
        return FittedShares(self, model, inner, Scales.restore(state))


@dataclass(frozen=True, eq=False)
class FittedShares:
    """The shares of a signature of one model.

    Attributes:
        spec: what was fitted.
        model: the model.
        inner: the signature.
        norms: the columns of the totals, and their units.
    """

    spec: Shares
    model: OpenModel
    inner: FittedSignature
    norms: Scales

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the numbers are."""
        return (*self.inner.columns, *self.norms.columns)

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
        """(n, d + blocks) shares and log norms."""
        known = self.model.inputs(inputs)
        values = on(self.inner, self.model)(known).values.astype(np.float64)
        members = blocks_of(self.inner.columns if self.spec.of == "block" else ())
        totals = _totals(values, members)
        divisors = np.maximum(totals, _SMALLEST * self.norms.sizes)
        shares = np.empty_like(values)
        for i, rows in enumerate(members.values()):
            shares[:, rows] = values[:, rows] / divisors[:, [i]]
        logs = signed_log(totals, self.norms.sizes)
        return signatures(known, self.columns, np.concatenate([shares, logs], axis=1))

    def state(self) -> State:
        """The state of the signature, and the usual totals."""
        return self.norms.save(packed((self.inner,)))


def blocks_of(columns: tuple[Column, ...]) -> dict[str, Any]:
    """Name of a block -> its columns, in the order of the columns; no columns mean all of them as one."""
    found: dict[str, list[int]] = {}
    for i, column in enumerate(columns):
        found.setdefault(column.block or column.site, []).append(i)
    return dict(found) if columns else {"": slice(None)}


def _names(members: dict[str, Any]) -> list[str]:
    return [name or "of all" for name in members]


def _totals(values: Floats, members: dict[str, Any]) -> Floats:
    return np.stack([np.abs(values[:, rows]).sum(1) for rows in members.values()], axis=1)
