"""From effects per unit to columns: by rank, by place, and on a scale that heavy tails do not dominate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from causalmad.inputs import Inputs
from causalmad.signatures.base import Column

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reduced:
    """Columns and their values, (n, d)."""

    columns: tuple[Column, ...]
    values: Floats


def by_rank(name: str, effects: Floats, top: int, *, last: bool) -> Reduced:
    """Columns that do not change when the units change places.

    Args:
        name: what the effects are, for the names of the columns.
        effects: (n, units), NaN where an input has no such unit; unit 0 is the last position.
        top: how many of the largest effects, by size.
        last: whether unit 0 is the last position, which keeps its place and so a column of its own.

    Returns:
        The ``top`` largest by absolute size (signed), their sum over all units, the entropy (nats) of the shares of
        absolute size, and the last position.
    """
    known = np.where(np.isnan(effects), 0.0, effects)
    size = np.abs(known)
    order = np.argsort(-size, axis=1, kind="stable")
    ranked = np.take_along_axis(known, order, axis=1)
    ranked = _filled(ranked, top)
    total = size.sum(1, keepdims=True)
    share = np.divide(size, total, out=np.zeros_like(size), where=total > 0)
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(1)
    parts = {**{f"rank {i + 1}": ranked[:, i] for i in range(top)}, "sum": known.sum(1), "entropy": entropy}
    if last:
        parts["last position"] = known[:, 0]
    columns = tuple(Column(f"{name} {unit}", unit=unit, block=f"{name} by rank") for unit in parts)
    return Reduced(columns, np.stack(list(parts.values()), axis=1))


def by_place(name: str, effects: Floats, units: tuple[str, ...], sites: tuple[str, ...], *, ragged: bool) -> Reduced:
    """One column per unit; positions beyond the longest trusted input are added up in one more.

    Args:
        name: what the effects are.
        effects: (n, units), NaN where an input has no such unit, which counts as no effect.
        units: names of the units, or of as many positions as the longest trusted input has.
        sites: site of every unit, or empty.
        ragged: whether there may be further positions.
    """
    return Reduced(place_columns(name, units, sites, ragged=ragged), placed(effects, len(units), ragged=ragged))


def placed(effects: Floats, width: int, *, ragged: bool) -> Floats:
    """The values of :func:`by_place`.

    Args:
        effects: (n, units), NaN where an input has no such unit.
        width: how many units have a column of their own.
        ragged: whether there may be more.
    """
    known = np.where(np.isnan(effects), 0.0, effects)
    values = _filled(known, width)
    return np.concatenate([values, known[:, width:].sum(1, keepdims=True)], axis=1) if ragged else values


def place_columns(name: str, units: tuple[str, ...], sites: tuple[str, ...], *, ragged: bool) -> tuple[Column, ...]:
    """The columns of :func:`by_place`."""
    columns = [
        Column(f"{name} {unit}", site, "" if ragged else unit, unit if ragged else "", f"{name} by place")
        for unit, site in zip(units, sites or ("",) * len(units), strict=True)
    ]
    if ragged:
        site = sites[-1] if sites else ""
        columns.append(Column(f"{name} beyond {units[-1]}", site, position="beyond", block=f"{name} by place"))
    return tuple(columns)


def _filled(values: Floats, width: int) -> Floats:
    """The first columns, with zeros for those that are not there."""
    missing = width - values.shape[1]
    return np.pad(values, ((0, 0), (0, missing))) if missing > 0 else values[:, :width]


def total(name: str, effects: Floats) -> Reduced:
    """One column: the sum over all units of (n, units) effects, NaN where an input has no such unit."""
    return Reduced((Column(f"{name} sum", unit="sum", block=name),), np.nansum(effects, axis=1)[:, None])


def join(parts: list[Reduced]) -> Reduced:
    """All columns beside each other."""
    columns = tuple(column for part in parts for column in part.columns)
    return Reduced(columns, np.concatenate([part.values for part in parts], axis=1))


def in_parts(inputs: Inputs, size: int, reduce: Callable[[Inputs], Reduced]) -> Reduced:
    """The columns of some inputs at a time, so that what their runs hold fits into memory.

    Args:
        inputs: any number, also none.
        size: how many at a time.
        reduce: the columns of some inputs, each of which depends on its own input alone.
    """
    parts = [reduce(inputs[start : start + size]) for start in range(0, max(len(inputs), 1), size)]
    return Reduced(parts[0].columns, np.concatenate([part.values for part in parts]))


def scales_of(values: Floats) -> Floats:
    """(d,) median absolute size of each column's non-zero trusted values, the unit of :func:`signed_log`.

    A column of zeros has the unit 1.
    """
    known = np.where(values == 0, np.nan, np.abs(values))
    empty = np.isnan(known).all(0)
    known[:, empty] = 1.0
    return np.asarray(np.nanmedian(known, axis=0), dtype=np.float64)


def signed_log(values: Floats, scales: Floats) -> Floats:
    """Sign times log(1 + size / scale): linear near zero, logarithmic in the tails, which are heavy."""
    with np.errstate(divide="ignore"):  # the logarithm of no effect is minus infinity, which adds nothing
        ratio = np.log(np.abs(values)) - np.log(scales)
    logs: Floats = np.sign(values) * np.logaddexp(0.0, ratio)
    return logs
