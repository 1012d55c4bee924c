"""Donors: the trusted inputs whose values replace others' in an intervention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from causalmad.errors import FitError
from causalmad.inputs import Batch, Inputs
from causalmad.packing import pack, unpack


@dataclass(frozen=True)
class Donors:
    """A fixed set of trusted inputs, the same for everything that is scored, so that donor noise is shared.

    One spare is kept beyond ``count``: an input that is itself a donor uses the spare, and never its own values.

    Attributes:
        inputs: the ``count + 1`` donors, the spare last.
        count: how many donors an input is given.
    """

    inputs: Inputs
    count: int

    @classmethod
    def draw(cls, trusted: Inputs, count: int, seed: int) -> Donors:
        """``count`` donors and a spare, drawn by ``seed`` from the trusted inputs, of distinct content.

        Raises:
            FitError: when the trusted inputs are too few.
        """
        # In the order of the contents, so that the order in which trusted inputs come decides nothing.
        _, distinct = np.unique(np.array(trusted.digests), return_index=True)
        if len(distinct) < count + 1:
            raise FitError(
                f"{len(distinct)} distinct trusted inputs for {count} donors and a spare",
                needed=f"at least {count + 1} trusted inputs beside those that are scored",
                tries=["more trusted inputs", f"donors={max(len(distinct) - 1, 1)}"],
            )
        rows = np.random.default_rng(seed).choice(distinct, count + 1, replace=False)
        return cls(trusted[rows], count)

    def of(self, inputs: Inputs) -> npt.NDArray[np.int64]:
        """(n, count) which donors each input is given: the first ``count``, and the spare in place of itself."""
        own = np.array(self.inputs.digests)[None, :] == np.array(inputs.digests)[:, None]
        table = np.tile(np.arange(self.count), (len(inputs), 1))
        return np.where(own[:, : self.count], self.count, table)

    def pack(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Tensors and plain data for a file; :meth:`unpack` is the way back."""
        tensors, data = pack(self.inputs)
        return tensors, {"inputs": data, "count": self.count}

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> Donors:
        """The donors of which :meth:`pack` wrote ``tensors`` and ``data``."""
        return cls(unpack(tensors, data["inputs"]), int(data["count"]))


def align(donors: Tensor, donor_mask: Tensor | None, which: Tensor, batch: Batch) -> Tensor:
    """(batch, ...) one donor's values for every row of a batch, aligned at the last real token.

    Args:
        donors: (donors, positions, ...) values, or (donors, ...) where the inputs are no sequences.
        donor_mask: (donors, positions) real tokens of the donors, or None.
        which: (batch,) donor of each row.
        batch: the rows; where a row is longer than its donor, the donor is read again from its end.
    """
    if donor_mask is None or batch.mask is None or donors.ndim < 2 or donors.shape[1] != donor_mask.shape[1]:
        return donors[which.to(donors.device)]
    # A model may be spread over devices, and the values with it.
    columns = _columns(donor_mask, which.to(donor_mask.device), batch.mask)
    return donors[which.to(donors.device)[:, None], columns.to(donors.device)]


def averager(donor_mask: Tensor | None, which: Tensor, batch: Batch) -> Callable[[Tensor], Tensor]:
    """The mean over several donors of :func:`align`, at any number of places for the same donors and rows.

    Args:
        donor_mask: (donors, positions) real tokens of the donors, or None.
        which: (batch, donors) the donors of each row.
        batch: the rows.

    Returns:
        From (donors, positions, width) values to their means (batch, positions, width), in single precision where the
        model has less: sums over positions and features would be rounded away.
    """
    if donor_mask is None or batch.mask is None:
        return lambda donors: _wide(donors)[which].mean(1)
    # Most inputs are given the same donors: then one table of means by distance from the end serves all of them.
    alike = bool((which == which[:1]).all())
    rows = (which[:1] if alike else which).to(donor_mask.device)
    width = batch.mask.shape[1]
    columns = _back(donor_mask, rows, torch.arange(width, device=donor_mask.device))
    index = (rows[:, :, None] * donor_mask.shape[1] + columns).transpose(1, 2)
    own = torch.zeros(1, 1, dtype=torch.int64) if alike else torch.arange(len(which))[:, None]
    distance = from_end(batch.mask).clamp(min=0)

    def averaged(donors: Tensor) -> Tensor:
        flat = index.flatten(0, 1).to(donors.device)
        means = embedding_bag(flat, _wide(donors).flatten(0, 1), mode="mean").reshape(*index.shape[:2], -1)
        if alike and batch.full:
            return means.flip(1).expand(len(which), -1, -1)
        return means[own.to(donors.device), distance.to(donors.device)]

    return averaged


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _columns(donor_mask: Tensor, which: Tensor, mask: Tensor) -> Tensor:
    """(*which, positions) the column of each donor that is as far from its end, read again where it is shorter."""
    return _back(donor_mask, which, from_end(mask).clamp(min=0))


def _back(donor_mask: Tensor, which: Tensor, distance: Tensor) -> Tensor:
    """(*which, positions) the column of each donor at some distances from its end."""
    lengths = donor_mask.sum(-1)[which]
    start = donor_mask.long().argmax(-1)[which]
    return (start + lengths - 1)[..., None] - distance % lengths[..., None]


def from_end(mask: Tensor) -> Tensor:
    """(..., positions) distance to the last real token: 0 there, 1 before it; negative at padding after it."""
    last = mask.shape[-1] - 1 - mask.long().flip(-1).argmax(-1)
    return last[..., None] - torch.arange(mask.shape[-1], device=mask.device)
