import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as draws
from hypothesis.extra import numpy as arrays

from causalmad.errors import FitError
from causalmad.moments import Moments

tables = arrays.arrays(
    np.float64,
    draws.tuples(draws.integers(2, 30), draws.integers(1, 5)),
    elements=draws.floats(-1e3, 1e3, allow_subnormal=False),
)


def same(a: Moments, b: Moments) -> None:
    assert a.n == b.n
    size = np.abs(b.scatter).max() + 1e-12
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=1e-10, atol=1e-10 * size)


@settings(deadline=None)
@for_all(X=tables, cuts=draws.lists(draws.integers(0, 30), max_size=5))
def test_streaming_gives_what_one_batch_gives(X, cuts):
    seen = Moments.empty(X.shape[1])
    for part in np.split(X, sorted(min(cut, len(X)) for cut in cuts)):
        seen = seen.update(part)
    same(seen, Moments.empty(X.shape[1]).update(X))


@settings(deadline=None)
@for_all(X=tables, cut=draws.integers(0, 30))
def test_merging_gives_the_union_in_either_order(X, cut):
    empty = Moments.empty(X.shape[1])
    left, right = empty.update(X[:cut]), empty.update(X[cut:])
    same(left.merge(right), empty.update(X))
    same(right.merge(left), empty.update(X))


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e7])
def test_batch_exact_to_ten_digits_far_from_zero(offset):
    X = np.random.default_rng(0).normal(size=(2000, 6)) + offset
    one_by_one = Moments.empty(6)
    for row in X:
        one_by_one = one_by_one.update(row[None])
    np.testing.assert_allclose(
        one_by_one.mean, X.astype(np.longdouble).mean(axis=0).astype(float), rtol=1e-12, atol=1e-14
    )
    # Not against zero entries, but against the size of the matrix: covariances near zero have no relative precision.
    exact = X.astype(np.longdouble) - X.astype(np.longdouble).mean(axis=0)
    expected = exact.T @ exact / 1999
    assert np.abs(one_by_one.covariance() - expected).max() < 1e-10


@pytest.mark.parametrize("start", [0.0, 1e6])
def test_rows_that_drift_over_many_blocks_lose_no_digits(start):
    # The centre is taken from the first rows, which here are unlike all that follow.
    X = np.random.default_rng(0).normal(size=(300_000, 6)) + np.linspace(start, start + 1e3, 300_000)[:, None]
    exact = X.astype(np.longdouble) - X.astype(np.longdouble).mean(axis=0)
    expected = np.array([[(a * b).sum() for a in exact.T] for b in exact.T]).astype(float)
    for found in (Moments.of([X], 6), Moments.of(np.array_split(X, 7), 6)):
        assert found.n == 300_000
        np.testing.assert_allclose(found.scatter, expected, rtol=1e-10)
        np.testing.assert_allclose(found.mean, X.astype(np.longdouble).mean(axis=0).astype(float), rtol=1e-13)


def test_no_chunks_are_no_rows():
    assert Moments.of([], 3).n == 0 and Moments.of([np.empty((0, 3))], 3).n == 0
    with pytest.raises(FitError, match=r"\(2, 4\)"):
        Moments.of([np.ones((2, 3)), np.ones((2, 4))], 3)


@settings(max_examples=30, deadline=None)
@for_all(X=tables)
def test_covariance_is_numpys(X):
    got = Moments.empty(X.shape[1]).update(X)
    np.testing.assert_allclose(got.covariance(), np.cov(X.T).reshape(2 * X.shape[1:]), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(got.covariance(ddof=0) * len(X), got.scatter, atol=1e-300)


def test_a_constant_column_has_exactly_no_scatter():
    seen = Moments.empty(2)
    for size in (1, 7, 100):
        seen = seen.update(np.full((size, 2), [0.1, 1e7 + 0.1]))
    assert seen.mean.tolist() == [0.1, 1e7 + 0.1]
    assert not seen.scatter.any()


def test_update_changes_nothing_in_place_and_takes_no_rows():
    before = Moments.empty(2).update([[1.0, 2.0], [3.0, 5.0]])
    mean, scatter = before.mean.copy(), before.scatter.copy()
    before.update([[9.0, 9.0]])
    assert (before.mean == mean).all() and (before.scatter == scatter).all()
    assert before.update(np.empty((0, 2))) is before


def test_wrong_shapes_and_too_few_rows_are_named():
    with pytest.raises(FitError, match=r"\(3,\)"):
        Moments.empty(3).update([1.0, 2.0, 3.0])
    with pytest.raises(FitError, match="2 columns with moments of 3"):
        Moments.empty(2).merge(Moments.empty(3))
    with pytest.raises(FitError, match="at least 2 rows"):
        Moments.empty(2).update([[1.0, 2.0]]).covariance()
