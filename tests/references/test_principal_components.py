import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from causalmad.errors import FitError, InputsError, SpecError, StoreError
from causalmad.references.chunks import folds
from causalmad.references.mahalanobis import Mahalanobis
from causalmad.references.principal_components import PrincipalComponents
from tests.twins import principal_components as twin


def rows(n=100, d=6, seed=0):
    draw = np.random.default_rng(seed)
    mixing = np.random.default_rng(3).normal(size=(d, d)) * 2.0 ** -np.arange(d)[:, None]
    return draw.normal(size=(n, d)) @ mixing * 10.0 ** np.arange(d) + 5


def anomaly(fitted, X):
    return -fitted.score_samples(X)


@pytest.mark.parametrize(("n", "k"), [(100, 2), (30, 4), (12, 3)])
def test_equals_its_slow_twin(n, k):
    found = anomaly(PrincipalComponents(k).fit(rows(n)), rows(15, seed=1))
    np.testing.assert_allclose(found, twin.scores(rows(n), rows(15, seed=1), k, folds(0, n, 5)), rtol=1e-8)


def test_a_share_is_scikit_learns_choice_of_components():
    X = rows()
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    for share in (0.5, 0.9, 0.99):
        expected = PCA(share, svd_solver="full").fit(Z)
        fitted = PrincipalComponents(share).fit(X)
        np.testing.assert_allclose(fitted.variances, expected.explained_variance_)
        np.testing.assert_allclose(np.abs(fitted.vectors), np.abs(expected.components_), atol=1e-9)


def test_all_components_are_the_mahalanobis_distance():
    X, new = rows(), rows(20, seed=1)
    whole = PrincipalComponents(6).fit(X)
    # One divides by n - 1 as scikit-learn's PCA, the other by n.
    expected = anomaly(Mahalanobis("empirical", rcond=1e-12).fit(X), new) * 99 / 100
    np.testing.assert_allclose(anomaly(whole, new), expected, rtol=1e-6)


def test_sees_anomalies_in_directions_of_small_variance():
    draw = np.random.default_rng(0)
    wide, narrow = draw.normal(size=(600, 2)), 0.05 * draw.normal(size=(600, 8))
    X = wide @ draw.normal(size=(2, 8)) + narrow
    odd = X[450:].copy()
    odd += 0.3 * PCA().fit(X[:300]).components_[-1]
    fitted = PrincipalComponents(2).fit(X[:300])
    truth = np.r_[np.zeros(150), np.ones(150)]
    test = np.r_[X[300:450], odd]
    assert roc_auc_score(truth, anomaly(fitted, test)) > 0.95
    leading = fitted.contributions(test).sum(axis=1) - fitted.residuals(test)
    assert roc_auc_score(truth, leading) < 0.65


@pytest.mark.parametrize(("n", "d"), [(30, 60), (60, 60), (200, 20)])
def test_residuals_of_fresh_rows_are_about_one(n, d):
    # Where there are fewer rows than columns, residuals of the rows of the fit themselves are next to nothing.
    fitted = PrincipalComponents(0.95).fit(np.random.default_rng(0).normal(size=(n, d)))
    assert 0.75 < fitted.residuals(np.random.default_rng(1).normal(size=(500, d))).mean() < 1.3


def test_contributions_sum_and_name_the_column():
    X = np.random.default_rng(0).normal(size=(200, 6))
    for components in (0.8, 2, 40):
        fitted = PrincipalComponents(components).fit(X)
        odd = X[:20].copy()
        odd[:, 3] += 15
        np.testing.assert_allclose(fitted.contributions(odd).sum(axis=1), anomaly(fitted, odd), rtol=1e-9)
        assert (fitted.contributions(odd).argmax(axis=1) == 3).all()


def test_constant_and_duplicate_columns_are_kept():
    X = np.c_[rows(80, 3), np.full(80, 0.1)]
    X = np.c_[X, X[:, 0]]
    fitted = PrincipalComponents().fit(X)
    new = np.repeat(X[:1], 3, axis=0)
    new[1, 3] += 0.05
    new[2, 4] += 3 * X[:, 4].std()
    usual, constant, duplicate = anomaly(fitted, new)
    assert constant > 1000 > usual
    assert duplicate > 10 * usual
    assert np.isfinite(anomaly(PrincipalComponents().fit(np.ones((5, 3))), np.zeros((2, 3)))).all()


def test_chunks_give_what_all_rows_give():
    X = rows(200)
    found = PrincipalComponents(3).fit_chunks([X[:7], X[7:50], X[50:]]).score_samples(X)
    np.testing.assert_allclose(found, PrincipalComponents(3).fit(X).score_samples(X), rtol=1e-8)
    with pytest.raises(FitError, match="one-shot"):
        PrincipalComponents().fit_chunks(iter([X]))


def test_a_row_scores_the_same_to_the_last_bit_in_any_company():
    fitted, new = PrincipalComponents().fit(rows(100, 33)), rows(41, 33, seed=1)
    alone = np.concatenate([fitted.score_samples(row[None]) for row in new])
    assert (fitted.score_samples(new) == alone).all()


def test_restored_scores_are_bit_equal():
    spec = PrincipalComponents(3)
    for X in (rows(), np.ones((9, 4))):
        fitted = spec.fit(X)
        state = {name: np.array(array) for name, array in fitted.state().items()}
        assert (spec.restore(state).score_samples(X + 1) == fitted.score_samples(X + 1)).all()
    with pytest.raises(StoreError, match="weight"):
        spec.restore({**state, "weight": -state["weight"]})


@pytest.mark.parametrize("components", [0, 1.0, -0.5, True, 2.5])
def test_bad_options_are_named(components):
    with pytest.raises(SpecError, match="components"):
        PrincipalComponents(components)


def test_bad_rows_are_named():
    with pytest.raises(FitError, match="at least 3"):
        PrincipalComponents().fit(rows(2))
    with pytest.raises(InputsError, match="2 columns"):
        PrincipalComponents().fit(rows()).score_samples(rows()[:, :2])
