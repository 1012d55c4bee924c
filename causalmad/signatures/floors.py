"""Floors: no column of a kind is measured in a unit so small that rounding would fill it."""

from __future__ import annotations

from collections.abc import Callable

from causalmad.signatures.base import Column
from causalmad.signatures.scaled import Scales

_SHARE = 0.1


def with_floors(scales: Scales, kind: Callable[[Column], str]) -> Scales:
    """The same columns, each in a unit of at least a tenth of the largest unit among the columns of its kind.

    Where a replacement hardly does anything on trusted inputs, the median of its effects is mostly the rounding of
    logits in single precision, and signed logarithms in such units would be rounding too. Below its unit a signed
    logarithm is linear, so that nothing is lost to a reference that standardises its columns.

    Args:
        scales: the columns and their units.
        kind: what a column measures: only units of the same kind are compared.
    """
    largest: dict[str, float] = {}
    for column, size in zip(scales.columns, scales.sizes, strict=True):
        largest[kind(column)] = max(largest.get(kind(column), 0.0), float(size))
    sizes = scales.sizes.copy()
    for i, column in enumerate(scales.columns):
        sizes[i] = max(sizes[i], _SHARE * largest[kind(column)])
    return Scales(scales.columns, sizes)
