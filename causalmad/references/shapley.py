"""Contributions to any score: Shapley values over groups of columns, for references that have none of their own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import combinations
from math import factorial

import numpy as np
import numpy.typing as npt

from causalmad.errors import InputsError
from causalmad.references.base import as_rows

Array = npt.NDArray[np.float64]

EXACT = 8  # groups up to which all subsets are gone through
_CHUNK = 2_000_000  # numbers in a table that is scored at once


def shapley(
    score_function: Callable[[Array], Array],
    X: npt.ArrayLike,
    background: npt.ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    orders: int = 16,
) -> Array:
    """Contributions (n, g) of g groups of columns that sum, for every row, to its score.

    The value of a set of groups is the score of the row with all other columns replaced by those of a background row,
    averaged over background rows. A group's contribution is its Shapley value, and an even share of the score of the
    background: exactly up to 8 groups, otherwise over a few random orders of the groups, each of them also backwards.
    Either way the sum is exact; for a score that is a sum over groups so is every contribution.

    Args:
        score_function: from (m, d) rows to (m,) scores.
        X: (n, d) rows to explain.
        background: (b, d) rows that stand for columns that are absent, such as the trusted median.
        groups: (d,) the group of each column, in the order in which they first stand; every column for itself without.
        seed: of the orders.
        orders: number of orders, half of them the other half backwards.

    Raises:
        InputsError: where a table is none of finite numbers, or the widths differ.

    References:
        Shapley 1953. Strumbelj, Kononenko 2010. Lundberg, Lee 2017, arXiv 1705.07874.
    """
    rows = as_rows(X, what="rows to explain", error=InputsError)
    absent = as_rows(background, what="background rows", columns=rows.shape[1], error=InputsError)
    labels = list(range(rows.shape[1])) if groups is None else list(groups)
    if len(labels) != rows.shape[1] or not len(absent):
        raise InputsError(
            f"{len(labels)} groups for {rows.shape[1]} columns, {len(absent)} background rows",
            needed="a group for each column and at least one background row",
        )
    known = list(dict.fromkeys(labels))
    members = np.array([[label == group for label in labels] for group in known])  # (g, d)
    found = np.empty((len(rows), len(known)))
    for place, row in enumerate(rows):

        def value(present: npt.NDArray[np.bool_], row: Array = row) -> Array:
            return _values(score_function, row, absent, present @ members)

        if len(known) <= EXACT:
            parts, base = _exact(value, len(known))
        else:
            parts, base = _sampled(value, len(known), orders, np.random.default_rng([seed, 23]))
        found[place] = parts + base / len(known)
    return found


def _values(score: Callable[[Array], Array], row: Array, absent: Array, kept: npt.NDArray[np.bool_]) -> Array:
    """(s,) mean over background rows of the scores with the columns ``kept`` (s, d) of the row."""
    size = max(1, _CHUNK // (absent.size or 1))
    means = []
    for start in range(0, len(kept), size):
        part = kept[start : start + size]
        mixed = np.where(part[:, None, :], row, absent[None])
        scores = np.asarray(score(mixed.reshape(-1, len(row))), dtype=np.float64)
        means.append(scores.reshape(len(part), len(absent)).mean(axis=1))
    return np.concatenate(means)


def _exact(value: Callable[[npt.NDArray[np.bool_]], Array], count: int) -> tuple[Array, float]:
    """Shapley values over all subsets, and the value of none."""
    sets = [frozenset(chosen) for size in range(count + 1) for chosen in combinations(range(count), size)]
    known = dict(zip(sets, value(np.array([[i in chosen for i in range(count)] for chosen in sets])), strict=True))
    parts = np.zeros(count)
    for chosen in sets:
        weight = factorial(len(chosen)) * factorial(count - len(chosen) - 1) if len(chosen) < count else 0
        for i in set(range(count)) - chosen:
            parts[i] += weight * (known[chosen | {i}] - known[chosen]) / factorial(count)
    return parts, float(known[frozenset()])


def _sampled(
    value: Callable[[npt.NDArray[np.bool_]], Array], count: int, orders: int, draw: np.random.Generator
) -> tuple[Array, float]:
    """Mean steps along random orders and their reverses, and the value of none."""
    total, base, pairs = np.zeros(count), 0.0, max(1, orders // 2)
    for _ in range(pairs):
        order = draw.permutation(count)
        for way in (order, order[::-1]):
            present = np.zeros((count + 1, count), dtype=bool)
            for step, group in enumerate(way):
                present[step + 1 :, group] = True
            values = value(present)
            total[way] += np.diff(values)
            base = float(values[0])
    return total / (2 * pairs), base
