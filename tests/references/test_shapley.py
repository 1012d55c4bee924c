from itertools import permutations

import numpy as np
import pytest

from causalmad.errors import InputsError
from causalmad.references.shapley import EXACT, shapley

draw = np.random.default_rng(0)
ROWS = draw.normal(size=(3, 5))
BACKGROUND = draw.normal(size=(2, 5))


def interacting(rows):
    return rows[:, 0] * rows[:, 1] + np.abs(rows[:, 2] - rows[:, 3]) ** 1.5 + 3


def by_all_orders(score, row, background, groups):
    """Shapley's own formula: the mean step over all orders, averaged over background rows."""
    names = list(dict.fromkeys(groups))
    total = dict.fromkeys(names, 0.0)
    orders = list(permutations(names))
    for absent in background:
        for order in orders:
            mixed = absent.copy()
            before = score(mixed[None])[0]
            for name in order:
                for column, group in enumerate(groups):
                    if group == name:
                        mixed[column] = row[column]
                after = score(mixed[None])[0]
                total[name] += (after - before) / len(orders) / len(background)
                before = after
    base = np.mean([score(absent[None])[0] for absent in background])
    return [total[name] + base / len(names) for name in names]


@pytest.mark.parametrize("groups", [None, ("a", "b", "a", "c", "b"), ("one",) * 5])
def test_equals_the_mean_over_all_orders(groups):
    found = shapley(interacting, ROWS, BACKGROUND, groups)
    for row, parts in zip(ROWS, found, strict=True):
        np.testing.assert_allclose(parts, by_all_orders(interacting, row, BACKGROUND, groups or range(5)), atol=1e-12)


@pytest.mark.parametrize("width", [EXACT, EXACT + 1, 40])
def test_the_sum_is_the_score_whatever_the_score_is(width):
    rows, background = draw.normal(size=(4, width)), draw.normal(size=(3, width))

    def score(table):
        return np.sin(table).prod(axis=1) + np.abs(table).max(axis=1)

    np.testing.assert_allclose(shapley(score, rows, background).sum(axis=1), score(rows), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("width", [4, 30])
def test_what_is_added_up_is_taken_apart_exactly(width):
    """Leave-one-out consistency: on an additive score each part is the change when its column alone is absent."""
    rows, background = draw.normal(size=(2, width)), np.zeros((1, width))

    def score(table):
        return (table**2 * np.arange(width)).sum(axis=1)

    parts = shapley(score, rows, background)
    for column in range(width):
        without = rows.copy()
        without[:, column] = 0
        np.testing.assert_allclose(parts[:, column], score(rows) - score(without), atol=1e-10)


def test_what_plays_no_part_gets_its_share_of_the_base_alone_and_equals_are_equal():
    row, background = np.array([[2.0, 2.0, 9.0]]), np.zeros((1, 3))
    parts = shapley(lambda table: 6 + table[:, 0] * table[:, 1], row, background)[0]
    assert parts.tolist() == [4.0, 4.0, 2.0]


def test_the_seed_decides_the_orders():
    rows, background = draw.normal(size=(1, 12)), np.zeros((1, 12))

    def score(table):
        return table.prod(axis=1) + (table[:, 0] > 0) * table[:, 5]

    first, again, other = (shapley(score, rows, background, seed=seed) for seed in (0, 0, 1))
    assert (first == again).all() and not (first == other).all()


def test_bad_tables_are_named():
    for bad in (ROWS[0], ROWS * np.nan, ROWS[:, :4]):
        with pytest.raises(InputsError):
            shapley(interacting, bad, BACKGROUND)
    with pytest.raises(InputsError, match="0 background rows"):
        shapley(interacting, ROWS, BACKGROUND[:0])
    with pytest.raises(InputsError, match="2 groups for 5 columns"):
        shapley(interacting, ROWS, BACKGROUND, ("a", "b"))
