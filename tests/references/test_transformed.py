import numpy as np
import pytest
from scipy.stats import norm
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import QuantileTransformer

from causalmad.errors import FitError, InputsError, SpecError, StoreError
from causalmad.references.mahalanobis import Mahalanobis
from causalmad.references.transformed import TRANSFORMS, Transformed
from tests.twins import transformed as twin

TWINS = {"rank": twin.rank, "signed-log": twin.signed_log, "robust": twin.robust}


def heavy(n=200, d=4, seed=0):
    return np.random.default_rng(seed).standard_cauchy(size=(n, d)) * 10.0 ** np.arange(d)


def each_transform(test):
    return pytest.mark.parametrize("transform", TRANSFORMS)(test)


@each_transform
def test_equals_its_slow_twin(transform):
    X = np.round(heavy(41), 1)  # with ties
    new = np.concatenate([X[:5], heavy(5, seed=1), X.min(axis=0, keepdims=True) * 3, X.max(axis=0, keepdims=True) * 3])
    found = Transformed(transform=transform).fit(X).transformed(new)
    expected = [[TWINS[transform](list(X[:, j]), x) for j, x in enumerate(row)] for row in new]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_rank_makes_trusted_columns_standard_normal_as_scikit_learn_does():
    X = heavy(5000)
    found = Transformed().fit(X).transformed(X)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(found.std(axis=0), 1, atol=0.01)
    expected = QuantileTransformer(n_quantiles=1001, output_distribution="normal", subsample=None).fit_transform(X)
    inside = np.abs(expected) < 2.5
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.02)


def test_departures_beyond_the_trusted_range_count_by_how_far():
    # A clipped distribution function gives all of them the same score.
    X = heavy(300)
    beyond = np.abs(X).max(axis=0) * np.array([[1.5], [3], [10], [1000]])
    clipped = QuantileTransformer(n_quantiles=300, output_distribution="normal").fit(X).transform(beyond)
    assert (clipped == clipped[0]).all()
    for transform in TRANSFORMS:
        scores = Transformed(transform=transform).fit(X).score_samples(np.concatenate([X, beyond, -beyond]))
        assert (np.diff(scores[300:304]) < 0).all() and (np.diff(scores[304:]) < 0).all()
        assert scores[300] < np.quantile(scores[:300], 0.05)
    far = Transformed().fit(X).transformed(beyond * 2) / Transformed().fit(X).transformed(beyond)
    np.testing.assert_allclose(far, 2, rtol=0.2)  # on the line through the median


@each_transform
def test_increases_strictly(transform):
    X = np.r_[np.zeros(150), heavy(150, 1)[:, 0].clip(min=0)][:, None]  # most values the smallest
    new = np.sort(np.r_[np.unique(X), np.linspace(-20, 20, 501), 1e6, -1e6])[:, None]
    steps = np.diff(Transformed(transform=transform).fit(X).transformed(np.unique(new)[:, None])[:, 0])
    assert (steps > 0).all()


def test_heavy_tails_do_not_hide_an_odd_relation():
    def correlated(n, seed, sign):
        draw = np.random.default_rng(seed)
        z = draw.normal(size=(n, 1)) + 0.1 * draw.normal(size=(n, 2))
        z[:, 1] *= sign
        return np.sinh(3 * z) * 100

    trusted, test = correlated(300, 0, 1), np.r_[correlated(200, 1, 1), correlated(200, 2, -1)]
    truth = np.r_[np.zeros(200), np.ones(200)]
    usual = roc_auc_score(truth, -Mahalanobis().fit(trusted).score_samples(test))
    for transform, least in (("rank", 0.9), ("signed-log", 0.8)):
        found = roc_auc_score(truth, -Transformed(transform=transform).fit(trusted).score_samples(test))
        assert found > least > usual + 0.15


@each_transform
def test_constant_columns(transform):
    X = np.c_[heavy(80), np.full(80, 0.1), np.zeros(80)].astype(np.float32)
    X[3, 4] = np.nextafter(np.float32(0.1), np.float32(1))
    fitted = Transformed(transform=transform).fit(X)
    new = np.repeat(X[:1], 3, axis=0).astype(float)
    new[1, 4] += 0.05
    new[2, 5] += 1e5
    usual, moved, left_zero = -fitted.score_samples(new)
    assert moved > usual + 1000 and left_zero > usual + 1000
    assert abs(fitted.contributions(X)[:, 4]).max() < 1e-3
    assert fitted.contributions(new)[1].argmax() == 4 and fitted.contributions(new)[2].argmax() == 5


def test_contributions_pass_through_where_there_are_any():
    X = heavy()
    fitted = Transformed().fit(X)
    odd = np.median(X, axis=0, keepdims=True)
    odd[0, 2] = X[:, 2].max() * 2
    assert fitted.contributions(odd).argmax() == 2
    np.testing.assert_allclose(fitted.contributions(X).sum(axis=1), -fitted.score_samples(X), rtol=1e-9)
    forest = Transformed(IsolationForest(n_estimators=10)).fit(X, seed=1)
    assert not hasattr(forest, "contributions")
    assert (
        forest.score_samples(X) == Transformed(IsolationForest(n_estimators=10)).fit(X, seed=1).score_samples(X)
    ).all()
    with pytest.raises(StoreError, match="IsolationForest"):
        forest.state()
    with pytest.raises(StoreError, match="IsolationForest"):
        Transformed(IsolationForest()).restore(fitted.state())


def test_what_the_reference_takes_is_passed_on_and_the_pool_is_transformed():
    seen = {}

    class Asks:
        def fit(self, X, *, untrusted, groups, classes, seed):
            seen.update(X=X, untrusted=untrusted, groups=groups, classes=classes, seed=seed)
            return Mahalanobis().fit(X)

    X = heavy()
    Transformed(Asks()).fit(X, untrusted=X[:7], groups=("a",) * 4, names=("b",) * 4, classes=np.arange(200), seed=5)
    np.testing.assert_allclose(seen["untrusted"], seen["X"][:7])
    np.testing.assert_allclose(norm.cdf(seen["X"]).mean(axis=0), 0.5, atol=0.01)
    assert seen["groups"] == ("a",) * 4 and seen["seed"] == 5 and len(seen["classes"]) == 200


@each_transform
def test_restored_scores_are_bit_equal(transform):
    X = heavy()
    spec = Transformed(Mahalanobis("oas"), transform)
    fitted = spec.fit(X)
    state = {name: np.array(array) for name, array in fitted.state().items()}
    assert (spec.restore(state).contributions(X * 2) == fitted.contributions(X * 2)).all()
    with pytest.raises(StoreError, match="centre"):
        spec.restore({name: array for name, array in state.items() if name != "centre"})


def test_bad_options_and_rows_are_named():
    with pytest.raises(SpecError, match="'rank'"):
        Transformed(transform="ranks")
    with pytest.raises(FitError, match="1 trusted row"):
        Transformed().fit(heavy(1))
    with pytest.raises(FitError, match="untrusted rows have 2 columns"):
        Transformed().fit(heavy(), untrusted=heavy()[:, :2])
    with pytest.raises(InputsError, match="3 columns"):
        Transformed().fit(heavy()).score_samples(heavy()[:, :3])
