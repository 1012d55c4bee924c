import numpy as np
import pytest
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score

from causalmad.errors import FitError, InputsError, SpecError, StoreError
from causalmad.references.chunks import folds
from causalmad.references.conditional_mahalanobis import ConditionalMahalanobis
from causalmad.references.mahalanobis import Mahalanobis
from tests.twins import conditional_mahalanobis as twin

GROUPS = ("output", "output", "heads", "heads", "heads")


def table(n=200, seed=0):
    draw, fixed = np.random.default_rng(seed), np.random.default_rng(9)
    c = draw.normal(size=(n, 2)) @ fixed.normal(size=(2, 2))
    f = c @ fixed.normal(size=(2, 3)) + 0.5 * draw.normal(size=(n, 3)) @ fixed.normal(size=(3, 3))
    return np.c_[c, f] * 10.0 ** np.arange(5) + 3


def anomaly(fitted, X):
    return -fitted.score_samples(X)


@pytest.mark.parametrize("n", [20, 90])
def test_equals_its_slow_twin(n):
    X, new = table(n), table(10, 1)
    found = anomaly(ConditionalMahalanobis().fit(X, groups=GROUPS), new)
    conditions = np.array([group == "output" for group in GROUPS])
    np.testing.assert_allclose(found, twin.scores(X, conditions, new, folds(0, n, 5)), rtol=1e-6)


def test_on_many_rows_it_is_the_joint_distance_less_that_of_the_conditions():
    X, new = table(20_000), table(50, 1)
    joint, alone = (
        EmpiricalCovariance().fit(X).mahalanobis(new),
        EmpiricalCovariance().fit(X[:, :2]).mahalanobis(new[:, :2]),
    )
    found = anomaly(ConditionalMahalanobis().fit(X, groups=GROUPS), new)
    np.testing.assert_allclose(found, joint - alone, rtol=0.02, atol=0.02)


def test_sees_a_mechanism_that_does_not_fit_its_output():
    draw = np.random.default_rng(0)
    f = draw.normal(size=(600, 40))
    output = f[:, :1] + 0.1 * draw.normal(size=(600, 1))
    output[450:] = draw.permutation(output[450:])  # as usual for itself, for other reasons
    X, truth = np.c_[output, f], np.r_[np.zeros(150), np.ones(150)]
    groups = ("output",) + ("heads",) * 40
    conditional = ConditionalMahalanobis().fit(X[:300], groups=groups)
    assert roc_auc_score(truth, anomaly(conditional, X[300:])) > 0.8
    assert roc_auc_score(truth, anomaly(Mahalanobis().fit(f[:300]), f[300:])) < 0.6


def test_odd_conditions_alone_are_not_scored():
    X = table(2000)
    fitted = ConditionalMahalanobis().fit(X, groups=GROUPS)
    far = X[:50].copy()
    unit = 20 * (X[:, 0] - 3).std()
    slope = np.linalg.lstsq(X[:, :2] - X[:, :2].mean(0), X[:, 2:] - X[:, 2:].mean(0), rcond=None)[0][0]
    far[:, 0] += unit
    far[:, 2:] += unit * slope
    assert np.median(anomaly(fitted, far)) < 5 * np.median(anomaly(fitted, X[:50]))
    far[:, 2] -= unit * slope[0]
    assert anomaly(fitted, far).min() > 10 * np.median(anomaly(fitted, X))


def test_residuals_are_those_of_rows_that_the_ridge_has_not_seen():
    # 30 conditions that say nothing: residuals of the ridge's own 40 rows would be far too small.
    draw = np.random.default_rng(1)
    X, fresh = draw.normal(size=(40, 34)), draw.normal(size=(500, 34))
    groups = ("output",) * 30 + ("heads",) * 4
    fitted = ConditionalMahalanobis(residual=Mahalanobis("diagonal")).fit(X, groups=groups)
    assert 0.5 < np.median(anomaly(fitted, fresh)) / 4 < 1.6


@pytest.mark.parametrize("on", ["out*", "output", "logit ?"])
def test_conditions_are_found_by_group_or_name(on):
    X, names = table(), ("logit 0", "logit 1", "a", "b", "c")
    fitted = ConditionalMahalanobis(on).fit(X, groups=GROUPS, names=names)
    assert fitted.conditions.tolist() == [True, True, False, False, False]
    parts = fitted.contributions(X)
    assert not parts[:, :2].any()
    np.testing.assert_allclose(parts.sum(axis=1), anomaly(fitted, X), rtol=1e-9)


def test_constant_columns_on_either_side():
    X = np.c_[np.full(80, 0.1), table(80), np.full(80, 7.0)].astype(np.float32)
    fitted = ConditionalMahalanobis().fit(X, groups=("output", *GROUPS, "heads"))
    new = X[:2].astype(float)
    new[1, 6] += 1
    usual, odd = anomaly(fitted, new)
    assert np.isfinite([usual, odd]).all() and odd > 1000 > usual
    assert fitted.contributions(new)[1].argmax() == 6


def test_restored_scores_are_bit_equal():
    X = table()
    for spec in (ConditionalMahalanobis(), ConditionalMahalanobis(residual=Mahalanobis("oas", two_sided=True))):
        fitted = spec.fit(X, groups=GROUPS)
        state = {name: np.array(array) for name, array in fitted.state().items()}
        assert (spec.restore(state).contributions(X) == fitted.contributions(X)).all()
        with pytest.raises(StoreError, match="slopes"):
            spec.restore({name: array for name, array in state.items() if name != "slopes"})
        with pytest.raises(StoreError, match="do not fit"):
            spec.restore({**state, "conditions": np.array([1.0, 0, 0, 0, 0])})


def test_what_is_missing_is_named():
    X = table(20)
    with pytest.raises(FitError, match=r"neither groups nor names(.|\n)*Detector\("):
        ConditionalMahalanobis().fit(X)
    with pytest.raises(FitError, match=r"on='outptu'(.|\n)*on='output'"):
        ConditionalMahalanobis("outptu").fit(X, groups=GROUPS)
    with pytest.raises(FitError, match=r"on='y'(.|\n)*(on='[abcde]'.*){3}"):
        ConditionalMahalanobis("y").fit(X, names=("a", "b", "c", "d", "e"))
    with pytest.raises(FitError, match="none is left"):
        ConditionalMahalanobis("*").fit(X, groups=GROUPS)
    with pytest.raises(FitError, match="2 groups for 5 columns"):
        ConditionalMahalanobis().fit(X, groups=("output", "heads"))
    with pytest.raises(FitError, match="at least 3"):
        ConditionalMahalanobis().fit(X[:2], groups=GROUPS)
    with pytest.raises(SpecError, match="Needed: a Mahalanobis"):
        ConditionalMahalanobis(residual="oas")
    with pytest.raises(InputsError, match="2 columns"):
        ConditionalMahalanobis().fit(X, groups=GROUPS).score_samples(X[:, :2])
