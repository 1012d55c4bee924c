import numpy as np
import pytest
from scipy.stats import combine_pvalues
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

from causalmad.errors import FitError, InputsError, SpecError, StoreError
from causalmad.references.chunks import folds
from causalmad.references.mahalanobis import Mahalanobis
from causalmad.references.per_site import COMBINATIONS, PerSite
from causalmad.references.relative_mahalanobis import RelativeMahalanobis
from tests.twins import per_site as twin

GROUPS = ("a", "b", "a", "c", "b", "c", "c")


def rows(n=60, d=7, seed=0):
    mixing = np.random.default_rng(3).normal(size=(d, d))
    return np.random.default_rng(seed).normal(size=(n, d)) @ mixing


def anomaly(fitted, X):
    return -fitted.score_samples(X)


def each_combination(test):
    return pytest.mark.parametrize("combine", COMBINATIONS)(test)


@each_combination
def test_equals_its_slow_twin(combine):
    X, new = rows(), np.r_[rows(10, seed=1), rows(5, seed=2) * 3]
    found = anomaly(PerSite(combine=combine).fit(X, groups=GROUPS), new)
    np.testing.assert_allclose(found, twin.scores(X, GROUPS, new, combine, folds(0, 60, 5)), rtol=1e-8)


def test_combinations_are_scipys():
    fitted = PerSite(combine="fisher").fit(rows(), groups=GROUPS)
    new = rows(20, seed=1)
    p = fitted.site_p_values(new)
    assert p.shape == (20, 3) and p.min() >= 1 / 61 and p.max() <= 60 / 61
    np.testing.assert_allclose(anomaly(fitted, new), [combine_pvalues(row, "fisher").statistic for row in p])
    stouffer = PerSite(combine="stouffer").fit(rows(), groups=GROUPS)
    independent = [combine_pvalues(row, "stouffer").statistic for row in p]
    np.testing.assert_allclose(anomaly(stouffer, new) * stouffer.load / np.sqrt(3), independent)


def test_stouffer_counts_a_repeated_site_once():
    X = rows(60, 2)
    once = PerSite(combine="stouffer").fit(X, groups=("a", "a"))
    four = PerSite(combine="stouffer").fit(np.tile(X, 4), groups=np.repeat(list("abcd"), 2))
    new = rows(10, 2, seed=1)
    assert np.isclose(four.load, 4) and np.isclose(once.load, 1)
    np.testing.assert_allclose(anomaly(four, np.tile(new, 4)), anomaly(once, new))


@each_combination
def test_the_loudest_site_does_not_win(combine):
    # The odd rows depart in a site of 2 columns; a site of 60 has scores ten times as large and as wide.
    draw = np.random.default_rng(0)
    X, new = draw.normal(size=(300, 68)), draw.normal(size=(400, 68))
    new[200:, 60:62] += 3.5
    groups = ("wide",) * 60 + tuple(f"narrow {j // 2}" for j in range(8))
    truth = np.r_[np.zeros(200), np.ones(200)]
    fitted = PerSite(combine=combine).fit(X, groups=groups)
    raw = np.stack([-one.score_samples(new[:, fitted.site == k]) for k, one in enumerate(fitted.members)], axis=1)
    assert roc_auc_score(truth, raw.max(axis=1)) < 0.6  # always the wide site
    # Stouffer asks for evidence from all sites, and so sees less of what one site shows; the others lead with it.
    assert roc_auc_score(truth, anomaly(fitted, new)) > (0.75 if combine == "stouffer" else 0.9)
    if combine == "mean":
        assert roc_auc_score(truth, anomaly(fitted, new)) > roc_auc_score(truth, raw.mean(axis=1)) + 0.1


def test_a_site_of_many_columns_is_not_odd_on_fresh_rows():
    # Scores of rows that a fit has seen are too small: with 40 of 60 rows' columns in one site by several units.
    draw = np.random.default_rng(1)
    X, fresh = draw.normal(size=(80, 42)), draw.normal(size=(2000, 42))
    fitted = PerSite(Mahalanobis("empirical")).fit(X, groups=("wide",) * 40 + ("narrow",) * 2)
    scores = fitted.site_scores(fresh)
    assert scores.shape == (2000, 2) and fitted.sites == ("wide", "narrow")
    assert abs(np.median(scores, axis=0)).max() < 1
    seen = -fitted.members[0].score_samples(X[:, :40])
    assert np.median(-fitted.members[0].score_samples(fresh[:, :40])) > seen.mean() + 5 * seen.std()
    assert abs((fitted.site_p_values(fresh) < 0.1).mean(axis=0) - 0.1)[1] < 0.06


@each_combination
def test_contributions_sum_within_sites_and_over_all(combine):
    fitted, new = PerSite(combine=combine).fit(rows(), groups=GROUPS), rows(20, seed=1)
    parts = fitted.contributions(new)
    np.testing.assert_allclose(parts.sum(axis=1), anomaly(fitted, new), rtol=1e-9, atol=1e-9)
    if combine == "mean":
        for k in range(3):
            np.testing.assert_allclose(parts[:, fitted.site == k].sum(axis=1), fitted.site_scores(new)[:, k] / 3)
    odd = rows(1, seed=3)
    odd[0, 4] += 40
    assert GROUPS[fitted.contributions(odd)[0].argmax()] == "b"


def test_the_sites_of_a_part_may_be_fitted_together():
    groups = ("one: a", "one: b", "two: a") * 2
    together = PerSite(each="part").fit(rows(60, 6), groups=groups)
    same = PerSite().fit(rows(60, 6), groups=[group[:3] for group in groups])
    assert together.sites == ("one", "two")
    new = rows(10, 6, seed=1)
    np.testing.assert_array_equal(anomaly(together, new), anomaly(same, new))
    with pytest.raises(SpecError, match="each"):
        PerSite(each="layer")


def test_any_reference_inside():
    X, groups = rows(), GROUPS
    forest = PerSite(IsolationForest(n_estimators=10), "max").fit(X, groups=groups, seed=2)
    np.testing.assert_allclose(forest.contributions(X).sum(axis=1), anomaly(forest, X))
    again = PerSite(IsolationForest(n_estimators=10), "max").fit(X, groups=groups, seed=2)
    assert (again.score_samples(X) == forest.score_samples(X)).all()
    with pytest.raises(StoreError, match="IsolationForest"):
        forest.state()
    classes = np.arange(60) % 2
    relative = PerSite(RelativeMahalanobis()).fit(X, groups=groups, classes=classes)
    expected = RelativeMahalanobis().fit(X[:, [0, 2]], classes=classes).score_samples(X[:, [0, 2]])
    np.testing.assert_allclose(relative.members[0].score_samples(X[:, [0, 2]]), expected)


def test_the_pool_and_the_names_go_to_their_site():
    seen = []

    class Asks:
        def fit(self, X, *, untrusted, names):
            seen.append((X.shape[1], untrusted.copy(), names))
            return Mahalanobis().fit(X)

    X = rows()
    PerSite(Asks()).fit(X, groups=GROUPS, names=tuple("0123456"), untrusted=X[:9])
    assert [(width, list(names)) for width, _, names in seen[-3:]] == [
        (2, ["0", "2"]),
        (2, ["1", "4"]),
        (3, ["3", "5", "6"]),
    ]
    assert (seen[-1][1] == X[:9, [3, 5, 6]]).all()


@each_combination
def test_restored_scores_are_bit_equal(combine):
    spec, X = PerSite(combine=combine), rows()
    for groups in (GROUPS, ("",) * 7, tuple("äbcdefg")):
        fitted = spec.fit(X, groups=groups)
        again = spec.restore({name: np.array(array) for name, array in fitted.state().items()})
        assert again.sites == fitted.sites
        assert (again.contributions(X * 2) == fitted.contributions(X * 2)).all()
    state = fitted.state()
    with pytest.raises(StoreError, match="unseen"):
        spec.restore({name: array for name, array in state.items() if name != "unseen"})
    with pytest.raises(StoreError, match="do not fit"):
        spec.restore({**state, "site": np.zeros(7)})
    with pytest.raises(StoreError, match="mean"):
        spec.restore({name: array for name, array in state.items() if name != "3:mean"})


def test_what_is_missing_is_named():
    with pytest.raises(FitError, match=r"no groups(.|\n)*groups=\["):
        PerSite().fit(rows())
    with pytest.raises(FitError, match="2 groups for 7 columns"):
        PerSite().fit(rows(), groups=("a", "b"))
    with pytest.raises(FitError, match="at least 3"):
        PerSite().fit(rows(2), groups=GROUPS)
    with pytest.raises(FitError, match="classes have shape"):
        PerSite().fit(rows(), groups=GROUPS, classes=[1])
    with pytest.raises(SpecError, match="'cauchy'"):
        PerSite(combine="couchy")
    with pytest.raises(InputsError, match="3 columns"):
        PerSite().fit(rows(), groups=GROUPS).site_scores(rows()[:, :3])
