import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as draws
from hypothesis.extra import numpy as arrays

from causalmad.signatures.columns import by_place, by_rank, join, scales_of, signed_log
from tests.twins import resampling_profile as twin

effects = arrays.arrays(
    np.float64,
    draws.tuples(draws.integers(1, 5), draws.integers(1, 8)),
    elements=draws.floats(-1e3, 1e3, allow_subnormal=False),
)


@settings(max_examples=60, deadline=None)
@for_all(values=effects, top=draws.integers(1, 10), seed=draws.integers(0, 99))
def test_ranks_do_not_change_when_units_change_places(values, top, seed):
    shuffled = np.random.default_rng(seed).permuted(values, axis=1)
    one, other = by_rank("x", values, top, last=False), by_rank("x", shuffled, top, last=False)
    assert one.columns == other.columns
    sizes, sums = slice(0, top), slice(top, None)
    np.testing.assert_array_equal(np.abs(one.values[:, sizes]), np.abs(other.values[:, sizes]))
    np.testing.assert_allclose(one.values[:, sums], other.values[:, sums], atol=1e-9 * (1 + np.abs(values).max()))


@settings(max_examples=60, deadline=None)
@for_all(values=effects, top=draws.integers(1, 10))
def test_ranks_equal_the_twin(values, top):
    found = by_rank("x", values, top, last=True)
    expected = [[*twin.ranked(row.tolist(), top), row[0]] for row in values]
    np.testing.assert_allclose(found.values, expected, rtol=1e-9, atol=1e-9)
    names = [column.unit for column in found.columns]
    assert names == [*(f"rank {i + 1}" for i in range(top)), "sum", "entropy", "last position"]


@settings(max_examples=40, deadline=None)
@for_all(values=effects)
def test_units_that_an_input_does_not_have_count_as_no_effect(values):
    padded = np.pad(values, ((0, 0), (0, 3)), constant_values=np.nan)
    # A zero of another sign and a sum of other length differ in their last bits at most.
    np.testing.assert_allclose(
        by_rank("x", padded, 3, last=True).values, by_rank("x", values, 3, last=True).values, rtol=1e-9
    )
    units = tuple(map(str, range(values.shape[1])))
    same = by_place("x", padded, units, (), ragged=False).values
    np.testing.assert_array_equal(same, values)


def test_entropy_is_of_the_shares_of_size_in_nats():
    values = np.array([[1.0, -1, 1, -1], [0, 5, 0, 0], [0, 0, 0, 0], [2, 1, 1, 0]])
    found = by_rank("x", values, 1, last=False).values[:, 2]
    np.testing.assert_allclose(found, [np.log(4), 0, 0, 1.5 * np.log(2)])


def test_one_place_per_unit_and_one_beyond():
    values = np.array([[1.0, 2, 3, 4, 5], [6, 7, np.nan, np.nan, np.nan]])
    found = by_place("kl", values, ("@-1", "@-2", "@-3"), (), ragged=True)
    np.testing.assert_array_equal(found.values, [[1, 2, 3, 9], [6, 7, 0, 0]])
    assert [column.position for column in found.columns] == ["@-1", "@-2", "@-3", "beyond"]
    short = by_place("kl", values[:, :2], ("@-1", "@-2", "@-3"), (), ragged=True)
    np.testing.assert_array_equal(short.values, [[1, 2, 0, 0], [6, 7, 0, 0]])


def test_joined_columns_keep_their_own_names():
    values = np.ones((2, 3))
    ranks = by_rank("kl", values, 3, last=True)
    places = by_place("kl", values, ("a", "b", "c"), ("s", "t", "u"), ragged=False)
    whole = join([ranks, places])
    names = [column.name for column in whole.columns]
    assert len(set(names)) == len(names) == whole.values.shape[1] == 9
    assert [column.site for column in whole.columns[-3:]] == ["s", "t", "u"]


def test_zeros_have_the_unit_one_and_stay_zero():
    values = np.array([[0.0, 2, 0], [0, -4, 0], [0, 0, 9]])
    np.testing.assert_array_equal(scales_of(values), [1, 3, 9])
    found = signed_log(values, scales_of(values))
    assert not found[values == 0].any()
    np.testing.assert_allclose(found[:2, 1], [np.log1p(2 / 3), -np.log1p(4 / 3)])


@settings(max_examples=40, deadline=None)
@for_all(values=effects)
def test_signed_logarithms_keep_sign_and_order(values):
    scales = scales_of(values)
    found = signed_log(values, scales)
    np.testing.assert_array_equal(np.sign(found), np.sign(values))
    for column, logs in zip(values.T, found.T):
        assert (np.diff(logs[np.argsort(column)]) >= 0).all()
    assert scales == pytest.approx([twin.scale(column.tolist()) for column in values.T])
