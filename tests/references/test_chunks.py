import tracemalloc

import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as draws

from causalmad.errors import FitError
from causalmad.references.chunks import Passes, folds, in_folds, subsample
from causalmad.references.mahalanobis import COVARIANCES, Mahalanobis

ONE_PASS = ("oas", "empirical", "diagonal", "low-rank")


def rows(n=200, d=6, seed=0):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(n, d)) @ draw.normal(size=(d, d)) + 100


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("covariance", COVARIANCES)
@settings(max_examples=5, deadline=None)
@for_all(cuts=draws.lists(draws.integers(0, 200), max_size=6))
def test_chunks_give_what_all_rows_give(covariance, two_sided, cuts):
    X, new = np.c_[rows(), np.full(200, 0.1)], np.c_[rows(seed=1), np.linspace(0, 1, 200)]
    spec = Mahalanobis(covariance, two_sided, rank=3)
    chunks = np.split(X, sorted(cuts))
    found = spec.fit_chunks(chunks, seed=2).score_samples(new)
    np.testing.assert_allclose(found, spec.fit(X, seed=2).score_samples(new), rtol=1e-8)


def test_a_memory_map_a_list_and_a_function_are_chunks(tmp_path):
    X = rows().astype(np.float32)
    np.save(tmp_path / "rows.npy", X)
    expected = Mahalanobis().fit(X).score_samples(X)
    for chunks in (np.load(tmp_path / "rows.npy", mmap_mode="r"), [X[:50], X[50:]], lambda: iter((X[:7], X[7:]))):
        np.testing.assert_allclose(Mahalanobis().fit_chunks(chunks).score_samples(X), expected, rtol=1e-8)


@pytest.mark.parametrize("covariance", ONE_PASS)
def test_a_one_shot_iterator_is_enough_for_one_pass(covariance):
    X = rows()
    found = Mahalanobis(covariance).fit_chunks(iter([X[:50], X[50:]])).score_samples(X)
    np.testing.assert_allclose(found, Mahalanobis(covariance).fit(X).score_samples(X), rtol=1e-8)


@pytest.mark.parametrize(
    "spec", [Mahalanobis(), Mahalanobis("robust"), *(Mahalanobis(name, True) for name in ONE_PASS)], ids=str
)
def test_a_one_shot_iterator_is_named_where_two_passes_are_needed(spec):
    # Not silently an empty second pass.
    parts = [rows()[:50], rows()[50:]]
    once = iter(parts)
    for chunks in (iter(parts), map(np.asarray, parts), (part for part in parts), lambda: once):
        with pytest.raises(FitError, match=r"one-shot iterator(.|\n)*from the start again(.|\n)*Try"):
            spec.fit_chunks(chunks)


def test_a_second_pass_with_other_rows_is_named():
    sizes = iter([200, 150])
    with pytest.raises(FitError, match="150 rows after 200"):
        Mahalanobis().fit_chunks(lambda: iter([rows()[: next(sizes)]]))


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ([], "no chunks"),
        ([np.empty((0, 3))], "0 trusted rows"),
        ([np.ones((4, 3)), np.ones((4, 2))], "from row 4 on have 2 columns"),
        ([np.ones((4, 3)), np.full((4, 3), np.nan)], r"from row 4 on hold NaN(.|\n)*columns 0, 1, 2"),
        (np.ones(3), r"\(3,\)"),
        (3, "got int"),
        (["text"], "no table|shape"),
    ],
)
def test_bad_chunks_are_named(chunks, words):
    with pytest.raises(FitError, match=words):
        Mahalanobis().fit_chunks(chunks)


@pytest.mark.parametrize("covariance", ["ledoit-wolf", "oas", "empirical", "low-rank"])
def test_memory_is_one_chunk_and_a_few_squares(covariance):
    n, d, size = 60_000, 64, 2_000

    def chunks():
        draw = np.random.default_rng(0)
        return (draw.normal(size=(size, d)) for _ in range(n // size))

    Mahalanobis(covariance).fit_chunks(lambda: iter([rows(50, d)]))  # imports
    tracemalloc.start()
    Mahalanobis(covariance).fit_chunks(chunks)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * (4 * size * d + 12 * d * d + 2**16) < 8 * n * d / 4


@for_all(cuts=draws.lists(draws.integers(0, 90), max_size=4), size=draws.integers(1, 120))
@settings(max_examples=30, deadline=None)
def test_a_subsample_does_not_depend_on_the_chunks(cuts, size):
    X = rows(90, 2)
    whole = subsample(X, size, seed=4)
    assert (subsample(np.split(X, sorted(cuts)), size, seed=4) == whole).all()
    assert len(whole) == min(size, 90)
    places = [int(np.flatnonzero((X == row).all(axis=1))[0]) for row in whole]
    assert places == sorted(set(places))


def test_every_row_is_as_likely_to_be_in_a_subsample():
    X = np.arange(20.0)[:, None]
    counts = np.zeros(20)
    for seed in range(2000):
        counts[subsample([X[:3], X[3:15], X[15:]], 5, seed)[:, 0].astype(int)] += 1
    assert abs(counts / 2000 - 0.25).max() < 0.05  # five standard deviations
    with pytest.raises(FitError, match="subsample of 0"):
        subsample(X, 0)


def test_folds_are_even_shuffled_and_fixed_by_place():
    whole = folds(0, 20_000, 5)
    assert np.bincount(whole).tolist() == [4000] * 5
    assert all(set(whole[i : i + 5]) == set(range(5)) for i in range(0, 1000, 5))
    assert len({tuple(whole[i : i + 5]) for i in range(0, 1000, 5)}) > 50
    pieces = [folds(start, 7, 5) for start in range(0, 19_999, 7)]
    assert (np.concatenate(pieces)[:19_999] == whole[:19_999]).all()


@pytest.mark.parametrize(("n", "number"), [(200, 5), (37, 10), (3, 5), (1, 5)])
@pytest.mark.parametrize("part", [1, 3, 7, 1000])
def test_equal_rows_that_follow_each_other_share_a_fold(n, number, part):
    random = np.random.default_rng(n)
    X = random.normal(size=(n, 2))
    assert (next(in_folds([X], n, number))[1] == folds(0, n, number)).all()
    copies = np.repeat(X, random.integers(1, 4, n), axis=0)
    chunks = [copies[start : start + part] for start in range(0, len(copies), part)]
    pairs = list(in_folds([*chunks, X[:0]], len(copies), number))
    assert (np.concatenate([chunk for chunk, _ in pairs]) == copies).all()
    expected, place, equal = [], -1, 0
    for row, before in zip(copies, [None, *copies[:-1]], strict=True):
        equal = equal + 1 if before is not None and (row == before).all() else 0
        place += equal % max(len(copies) // number, 1) == 0
        expected.append(folds(place, 1, number)[0])
    assert np.concatenate([fold for _, fold in pairs]).tolist() == expected


def test_more_equal_rows_than_a_fold_has_places_are_spread():
    assert np.bincount(next(in_folds([np.ones((100, 3))], 100, 5))[1]).tolist() == [20] * 5


def test_passes_remember_how_coarse_the_numbers_were():
    chunks = Passes([np.ones((2, 2)), np.ones((2, 2), dtype=np.float32)])
    assert sum(len(chunk) for chunk in chunks) == 4
    assert chunks.resolution == np.finfo(np.float32).eps
