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
        return torch.stack([_from_end(value.double(), batch) for value in _pair(values[places[0]].flatten(2))])
    if group.masks:
        return _masked(group, values[places[0]], batch)
    if group.name.startswith("neurons"):
        both = _with_sizes(values[places[0]])
        return both.sum(2) if both.ndim > 3 else both
    # (batch, ..., heads, features), one part for all heads of a place; what is no head is a part with one.
    parts: dict[Place | int, Tensor] = {}
    where: list[tuple[Place | int, int]] = []
    for site in group.sites:
        place = site.place
        value = values[place]
        if len(site.heads) == 1 and site.head_count and value.ndim in (2, 3):
            if place not in parts:
                parts[place] = value.unflatten(-1, (site.head_count, -1))
            where.append((place, site.heads[0]))
        else:
            # A head's own axis, neurons and subspaces.
            where.append((len(parts), 0))
            parts[len(parts)] = site.at(None).take(value, batch).unsqueeze(-2)
    rows = [row for part in parts.values() for row in _pair(part)]
    if len({row.shape for row in rows}) == 1:
        table = _beside(rows)
    else:
        table = torch.cat([_beside(rows[start : start + 2]) for start in range(0, len(rows), 2)], dim=2)
    ends = np.cumsum([part.shape[-2] for part in parts.values()])
    starts = {key: int(end) - part.shape[-2] for (key, part), end in zip(parts.items(), ends, strict=True)}
    columns = [starts[part] + head for part, head in where]
    return table if columns == list(range(table.shape[2])) else table[:, :, columns]


def _pair(value: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, ...) sums over the last axis, of the values and of their sizes; torch adds these up in pairs."""
    return value.sum(-1), value.abs().sum(-1)


def _beside(rows: Sequence[Tensor]) -> Tensor:
    """(2, batch, units) from (batch, ..., heads) sums and sizes in turn, added up over what is between."""
    table = torch.stack(list(rows)).double()
    if table.ndim > 3:
        table = table.flatten(2, -2).sum(2)
    beside: Tensor = table.unflatten(0, (-1, 2)).permute(1, 2, 0, 3).flatten(2)
    return beside


def _with_sizes(value: Tensor) -> Tensor:
    """(2, batch, ...) the values and their sizes."""
    return torch.stack([value, value.abs()]).double()


def _masked(group: Group, value: Tensor, batch: Batch) -> Tensor:
    """(2, batch, units) over the entries of each unit: of the input itself, or of the tokens' embeddings."""
    entries = _with_sizes(value) if batch.mask is None else torch.stack(_pair(value.flatten(2))).double()
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
