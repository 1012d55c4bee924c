"""Adding up an activation's contributions by unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.inputs import Batch
from causalmad.signatures.effects import input_mask
from causalmad.signatures.units import Group, real_tokens
from causalmad.sites import Place, require_rows


def unit_sums(
    group: Group, contributions: Mapping[Place, Tensor], places: Sequence[Place], batch: Batch
) -> dict[str, npt.NDArray[np.float64]]:
    """``sum`` and ``size`` -> (batch, units): signed and absolute contributions of every unit.

    Args:
        group: the units.
        contributions: place -> (batch, ...) contributions of single entries.
        places: where this group's units are.
        batch: the inputs; padding counts nothing.
    """
    found = unit_tensors(group, contributions, places, batch)
    return {kind: values.cpu().numpy() for kind, values in found.items()}


def unit_tensors(
    group: Group, contributions: Mapping[Place, Tensor], places: Sequence[Place], batch: Batch
) -> dict[str, Tensor]:
    """What :func:`unit_sums` gives, as tensors through which gradients flow.

    Raises:
        SiteError: where the axes of an activation do not run over the inputs, and by position over their tokens.
    """
    for place in places:
        require_rows(contributions[place], place, batch, tokens=group.ragged)
    values = {place: _real(contributions[place], batch) for place in places}
    signed, size = _reduce(group, values, places, batch)
    return {"sum": signed, "size": size}


def _reduce(group: Group, values: Mapping[Place, Tensor], places: Sequence[Place], batch: Batch) -> Tensor:
    """(2, batch, units) signed and absolute sums."""
    if group.ragged:
        return torch.stack([_from_end(value, batch) for value in _both(values[places[0]].flatten(2))])
    if group.masks:
        return _masked(group, values[places[0]], batch)
    if group.name.startswith("neurons"):
        return _over_places(_with_sizes(values[places[0]]), 1)
    # Every place is added up once for all of its heads, whatever their number.
    heads: dict[tuple[Place, int], Sequence[Tensor]] = {}
    columns = []
    for site in group.sites:
        place = site.place
        value = values[place]
        if len(site.heads) == 1 and site.head_count and value.ndim in (2, 3):
            key = place, site.head_count
            if key not in heads:
                heads[key] = _over_places(_both(value.unflatten(-1, (site.head_count, -1))), 1).unbind(2)
            columns.append(heads[key][site.heads[0]])
        else:
            # A head's own axis, neurons and subspaces.
            columns.append(_over_places(_both(site.at(None).take(value, batch)), 0))
    return torch.stack(columns, dim=2)


def _both(value: Tensor) -> Tensor:
    """(2, batch, ...) sums over the last axis, of the values and of their sizes; torch adds these up in pairs."""
    return torch.stack([value.sum(-1), value.abs().sum(-1)]).double()


def _with_sizes(value: Tensor) -> Tensor:
    """(2, batch, ...) the values and their sizes."""
    return torch.stack([value, value.abs()]).double()


def _over_places(both: Tensor, features: int) -> Tensor:
    """(2, batch, ...) added up over the axes between the inputs and the last ``features`` axes."""
    return both if both.ndim == features + 2 else both.flatten(2, both.ndim - features - 1).sum(2)


def _masked(group: Group, value: Tensor, batch: Batch) -> Tensor:
    """(2, batch, units) over the entries of each unit: of the input itself, or of the tokens' embeddings."""
    entries = _with_sizes(value) if batch.mask is None else _both(value.flatten(2))
    columns = []
    for unit in range(len(group.masks)):
        mask = input_mask(group, torch.full((len(batch),), unit), batch)
        columns.append(torch.where(mask, entries, 0).flatten(2).sum(-1))
    return torch.stack(columns, dim=2)


def _real(value: Tensor, batch: Batch) -> Tensor:
    """In single precision at least, and zero at padding, whatever a model makes of it."""
    if value.dtype in (torch.float16, torch.bfloat16):
        value = value.float()
    if batch.mask is None or batch.full or value.ndim < 3 or value.shape[1] != batch.mask.shape[1]:
        return value
    keep = batch.mask.to(value.device).reshape(*batch.mask.shape, *[1] * (value.ndim - 2))
    return torch.where(keep, value, 0)


def _from_end(value: Tensor, batch: Batch) -> Tensor:
    """(batch, positions) with the last real token first, NaN beyond the first."""
    mask = real_tokens(batch)
    lengths = mask.sum(-1)
    last = mask.long().argmax(-1) + lengths - 1
    index = last[:, None] - torch.arange(value.shape[1], device=value.device)[None, :]
    inside = torch.arange(value.shape[1], device=value.device)[None, :] < lengths[:, None]
    return torch.where(inside, value.gather(1, index.clamp(min=0)), torch.nan)
