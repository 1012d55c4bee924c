import numpy as np
import pytest
from sklearn.neighbors import LocalOutlierFactor

from causalmad.errors import FitError, InputsError, SpecError, StoreError
from causalmad.references.base import ExplainedReference
from causalmad.references.estimators import fit_reference
from causalmad.references.nearest_neighbours import NearestNeighbours
from tests.references.pools import restores, rows, stands_alone


def slow(trusted, new, k, normalise):
    mean, scale = trusted.mean(axis=0), trusted.std(axis=0)
    ours, theirs = (trusted - mean) / scale, (new - mean) / scale
    if normalise:
        ours = np.array([z / np.sqrt((z**2).sum()) for z in ours])
        theirs = np.array([z / np.sqrt((z**2).sum()) for z in theirs])
    return np.array([sorted(float(np.sqrt(((z - other) ** 2).sum())) for other in ours)[k - 1] for z in theirs])


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("k", [1, 3, 60])
def test_is_the_distance_to_the_kth_trusted_row(k, normalise):
    trusted, new = rows(), rows(12, seed=1)
    found = -NearestNeighbours(k, normalise).fit(trusted).score_samples(new)
    np.testing.assert_allclose(found, slow(trusted, new, k, normalise), rtol=1e-9)


@pytest.mark.parametrize(("n", "k"), [(2, 1), (100, 10), (5000, 50)])
def test_k_by_default_is_the_root_of_the_rows_and_at_most_50(n, k):
    assert NearestNeighbours().fit(rows(n)).k == k


@pytest.mark.parametrize("normalise", [False, True])
def test_contributions_rows_and_state(normalise):
    spec, new = NearestNeighbours(normalise=normalise), rows(20, seed=3)
    fitted = spec.fit(rows())
    assert isinstance(fitted, ExplainedReference)
    np.testing.assert_allclose(fitted.contributions(new).sum(axis=1), -fitted.score_samples(new), rtol=1e-9)
    assert stands_alone(fitted, new) and restores(spec, fitted, new)
    with pytest.raises(StoreError, match="points"):
        spec.restore({**fitted.state(), "points": np.ones((60, 4))})
    with pytest.raises(StoreError, match="k is 61"):
        spec.restore({**fitted.state(), "k": np.array([61.0])})


def test_the_column_that_is_far_has_the_largest_contribution():
    new = rows(5, seed=1)
    new[:, 2] += 30 * rows().std(axis=0)[2]
    assert (NearestNeighbours().fit(rows()).contributions(new).argmax(axis=1) == 2).all()


def test_a_trusted_row_finds_itself():
    trusted = rows()
    fitted = NearestNeighbours(1).fit(trusted)
    assert (fitted.score_samples(trusted) == 0).all() and (fitted.contributions(trusted) == 0).all()


def test_leaving_a_constant_column_is_far():
    trusted = np.c_[rows(), np.full(60, 0.1)]
    new = np.c_[rows(1, seed=1), [0.1]]
    off = np.c_[rows(1, seed=1), [0.2]]
    fitted = NearestNeighbours().fit(trusted)
    assert fitted.score_samples(off) < 10 * fitted.score_samples(new) < 0


def test_many_rows_are_sampled_by_seed():
    trusted, new = rows(300), rows(10, seed=1)
    one, same, other = (NearestNeighbours(5, most=100).fit(trusted, seed=seed) for seed in (0, 0, 1))
    assert len(one.points) == 100 and (one.points == same.points).all()
    assert (one.score_samples(new) != other.score_samples(new)).any()
    assert len(np.unique(one.points, axis=0)) == 100
    # Units are of all rows, and what is kept are rows of them.
    np.testing.assert_allclose(one.mean, trusted.mean(axis=0))
    distances = np.abs(one.points[:, None] - (trusted - one.mean) / one.scale).max(axis=2).min(axis=1)
    assert distances.max() < 1e-12


def test_scikit_learns_lof_does_not_depend_on_the_batch():
    # A peer's LOF has the test batch among its reference rows: 200 equal anomalies looked normal.
    anomalies = np.repeat(rows(1, seed=1) + 20 * rows().std(axis=0), 200, axis=0)
    fitted = fit_reference(LocalOutlierFactor(novelty=True), rows())
    together = fitted.score_samples(anomalies)
    np.testing.assert_allclose(together, fitted.score_samples(anomalies[:1])[0], rtol=1e-12)
    assert together.max() < fitted.score_samples(rows(200, seed=2)).min()
    assert stands_alone(NearestNeighbours().fit(rows()), anomalies)


def test_errors():
    with pytest.raises(FitError, match="k=70"):
        NearestNeighbours(70).fit(rows())
    with pytest.raises(FitError, match="at least 2 rows"):
        NearestNeighbours().fit(rows(1))
    with pytest.raises(SpecError, match="k=0"):
        NearestNeighbours(0)
    with pytest.raises(SpecError, match="most"):
        NearestNeighbours(most=0)
    with pytest.raises(InputsError, match="3 columns"):
        NearestNeighbours().fit(rows()).score_samples(rows(4, 3))
