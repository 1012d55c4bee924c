"""Subspaces: directions in an activation, as an orthonormal basis that can be compared, hashed and saved."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from causalmad.errors import SiteError

# Largest |BᵀB - 1| of a basis: single precision leaves about 1e-6 after a few hundred steps of training.
TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Subspace:
    """A linear subspace of the last axis of an activation.

    Two subspaces are equal when their bases are the same numbers.

    Args:
        basis: (features, dimensions) orthonormal columns. A copy is kept, in float32 or float64.

    Raises:
        SiteError: when the columns are not orthonormal; :meth:`spanning` makes a basis of any directions.

    Example:
        >>> Subspace(torch.eye(3)[:, :2])
        Subspace(2 of 3)
    """

    basis: Tensor

    def __post_init__(self) -> None:
        basis = self.basis.detach().to("cpu", copy=True).contiguous()
        basis = basis if basis.dtype == torch.float64 else basis.float()
        object.__setattr__(self, "basis", basis)
        if basis.ndim != 2 or not 0 < basis.shape[1] <= basis.shape[0]:
            raise SiteError(
                f"a basis of shape {tuple(basis.shape)}", needed="(features, dimensions), 1 <= dimensions <= features"
            )
        error = float((basis.T @ basis - torch.eye(basis.shape[1], dtype=basis.dtype)).abs().max())
        if not error <= TOLERANCE:
            raise SiteError(
                f"the columns of this basis are not orthonormal: they miss it by {error:.2g}",
                needed=f"at most {TOLERANCE:g}",
                tries=["Subspace.spanning(directions)"],
            )

    @classmethod
    def spanning(cls, directions: Tensor) -> Subspace:
        """The subspace that some directions (features, dimensions) span.

        Raises:
            SiteError: when they are linearly dependent.
        """
        wide = directions.detach().cpu().double()
        if wide.ndim != 2 or int(torch.linalg.matrix_rank(wide)) < wide.shape[1]:
            raise SiteError(
                f"directions of shape {tuple(wide.shape)} do not span that many dimensions",
                needed="(features, dimensions) linearly independent columns",
            )
        basis, upper = torch.linalg.qr(wide)
        signed = basis * upper.diagonal().sign()  # a basis that is orthonormal already stays as it is
        return cls(signed.to(directions.dtype if directions.dtype == torch.float64 else torch.float32))

    @property
    def features(self) -> int:
        """Width of the activation."""
        return int(self.basis.shape[0])

    @property
    def dimensions(self) -> int:
        """How many directions there are."""
        return int(self.basis.shape[1])

    @cached_property
    def digest(self) -> str:
        """Hash of the basis."""
        known = f"{self.basis.dtype}{tuple(self.basis.shape)}".encode()
        return hashlib.sha256(known + self.basis.numpy().tobytes()).hexdigest()

    def coordinates(self, value: Tensor) -> Tensor:
        """(..., dimensions) coordinates of (..., features)."""
        self._require_width(value)
        kind = torch.promote_types(value.dtype, self.basis.dtype)
        return value.to(kind) @ self.basis.to(value.device, kind)

    def replace(self, value: Tensor, new: Tensor) -> Tensor:
        """``value`` (..., features) with coordinates ``new`` (..., dimensions); all outside the subspace stays."""
        own = self.coordinates(value)
        change = (new.to(own) - own) @ self.basis.to(own).T
        return (value.to(change.dtype) + change).to(value.dtype)

    def pack(self) -> dict[str, Tensor]:
        """The basis for a file, under a name that says what it holds; :meth:`unpack` is the way back."""
        return {self.digest: self.basis}

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], digest: str) -> Subspace:
        """The subspace that :meth:`pack` wrote.

        Raises:
            SiteError: when it is missing or holds something else.
        """
        if digest not in tensors:
            raise SiteError(f"the basis of subspace {digest[:8]} is missing", causes=["files of different detectors"])
        found = cls(tensors[digest])
        if found.digest != digest:
            raise SiteError(f"the basis of subspace {digest[:8]} is not what was saved", causes=["a damaged file"])
        return found

    def __eq__(self, other: object) -> bool:
        """Same numbers."""
        return isinstance(other, Subspace) and self.digest == other.digest

    def __hash__(self) -> int:
        """Hash of the numbers."""
        return hash(self.digest)

    def __repr__(self) -> str:
        """Dimensions and width."""
        return f"Subspace({self.dimensions} of {self.features})"

    def __str__(self) -> str:
        """Dimensions and the start of the digest, for the text form of a site."""
        return f"{self.dimensions}:{self.digest[:8]}"

    def __reduce__(self) -> tuple[Any, ...]:
        return Subspace, (self.basis,)

    def _require_width(self, value: Tensor) -> None:
        if value.shape[-1:] != (self.features,):
            raise SiteError(f"{self!r} of an activation of shape {tuple(value.shape)}", needed="that many features")
