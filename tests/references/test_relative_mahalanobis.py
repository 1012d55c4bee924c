import numpy as np
import pytest
from sklearn.covariance import EmpiricalCovariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from causalmad.errors import FitError, InputsError, SpecError, StoreError
from causalmad.references.mahalanobis import Mahalanobis
from causalmad.references.relative_mahalanobis import RelativeMahalanobis
from tests.twins import relative_mahalanobis as twin

CENTRES = np.random.default_rng(5).normal(size=(3, 6)) * 3


def table(n=200, seed=0, d=6):
    draw = np.random.default_rng(seed)
    classes = draw.integers(3, size=n)
    mixing = np.random.default_rng(7).normal(size=(d, d))
    return (draw.normal(size=(n, d)) + CENTRES[classes][:, :d]) @ mixing * 10.0 ** np.arange(d), classes


@pytest.mark.parametrize("n", [30, 200])
def test_equals_its_slow_twin(n):
    (X, classes), (new, _) = table(n), table(15, 1)
    found = -RelativeMahalanobis().fit(X, classes=classes).score_samples(new)
    np.testing.assert_allclose(found, twin.scores(X, classes, new), rtol=1e-7, atol=1e-7)


def test_is_scikit_learns_discriminant_analysis_less_its_empirical_covariance():
    (X, classes), (new, _) = table(), table(40, 1)
    lda = LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True).fit(X, classes)
    P = np.linalg.inv(lda.covariance_)
    nearest = np.min([np.einsum("ij,jk,ik->i", new - mean, P, new - mean) for mean in lda.means_], axis=0)
    expected = nearest - EmpiricalCovariance().fit(X).mahalanobis(new)
    fitted = RelativeMahalanobis("empirical", rcond=1e-15).fit(X, classes=classes)
    np.testing.assert_allclose(-fitted.score_samples(new), expected, rtol=1e-5, atol=1e-5)
    assert (fitted.nearest(X) == lda.predict(X)).mean() > 0.95  # LDA weighs classes by their size


def test_class_and_background_distances_are_normalised_alike():
    # With both divided by n, trusted rows are d away from their classes and from the background, on average, exactly.
    X, classes = table()
    fitted = RelativeMahalanobis("empirical", rcond=1e-15).fit(X, classes=classes)
    own = X - fitted.means[classes] + fitted.within.mean
    assert np.isclose(fitted.within.shares(own).sum(axis=1).mean(), 6)
    assert np.isclose(fitted.background.shares(X).sum(axis=1).mean(), 6)


def test_a_direction_that_all_inputs_share_does_not_hide_the_classes():
    draw = np.random.default_rng(0)
    classes = draw.integers(2, size=400)
    shared = draw.normal(size=(800, 30))
    signal = np.where(np.r_[classes, classes] == 1, 4.0, -4.0)[:, None] + draw.normal(size=(800, 1))
    X = np.c_[shared, signal]
    odd = np.c_[draw.normal(size=(400, 30)), draw.normal(size=(400, 1))]  # between the classes
    truth = np.r_[np.zeros(400), np.ones(400)]
    relative, usual = RelativeMahalanobis().fit(X[:400], classes=classes), Mahalanobis().fit(X[:400])
    test = np.r_[X[400:], odd]
    assert roc_auc_score(truth, -relative.score_samples(test)) > 0.95
    assert roc_auc_score(truth, -usual.score_samples(test)) < 0.6


@pytest.mark.parametrize("covariance", ["ledoit-wolf", "oas", "empirical"])
def test_no_row_however_far_is_much_nearer_to_a_class_than_to_all_rows(covariance):
    X, classes = table(60)
    fitted = RelativeMahalanobis(covariance).fit(X, classes=classes)
    lowest = -(60 / np.bincount(classes)).max() / (1 - fitted.within.shrinkage)
    directions = np.random.default_rng(2).normal(size=(500, 6)) * X.std(axis=0)
    for far in (1.0, 10.0, 1e4):
        assert -fitted.score_samples(X.mean(axis=0) + far * directions).max() > lowest * (1 + 1e-6)


def test_contributions_are_those_of_the_nearest_class():
    (X, classes), (new, _) = table(), table(40, 1)
    fitted = RelativeMahalanobis().fit(X, classes=classes)
    np.testing.assert_allclose(fitted.contributions(new).sum(axis=1), -fitted.score_samples(new), rtol=1e-9, atol=1e-9)
    odd = CENTRES[:1] @ np.random.default_rng(7).normal(size=(6, 6)) * 10.0 ** np.arange(6)
    odd[0, 4] += 60 * X[:, 4].std()
    assert fitted.contributions(odd)[0].argmax() == 4


def test_rare_classes_are_taken_together():
    X, classes = table(60)
    rare = classes.copy()
    rare[:2] = [7, 9]
    joined = classes.copy()
    joined[:2] = 5
    a, b = (RelativeMahalanobis().fit(X, classes=labels) for labels in (rare, joined))
    np.testing.assert_allclose(a.score_samples(X), b.score_samples(X), rtol=1e-9)
    alone = classes.copy()
    alone[0] = 7
    assert len(RelativeMahalanobis().fit(X, classes=alone).means) == 3


def test_a_column_constant_within_classes_is_kept():
    X, classes = table(60)
    X = np.c_[X, classes * 2.0 + 1, np.full(60, 0.1)].astype(np.float32)
    fitted = RelativeMahalanobis().fit(X, classes=classes)
    odd = X[:3].astype(float)
    odd[:, 6] += 0.5
    assert (-fitted.score_samples(odd) > 10 - fitted.score_samples(X).min()).all()


def test_restored_scores_are_bit_equal():
    X, classes = table()
    spec = RelativeMahalanobis()
    fitted = spec.fit(X, classes=classes)
    state = {name: np.array(array) for name, array in fitted.state().items()}
    assert (spec.restore(state).contributions(X) == fitted.contributions(X)).all()
    with pytest.raises(StoreError, match="within"):
        spec.restore({**state, "within": state["within"][:2]})


def test_what_is_missing_is_named():
    X, classes = table(20)
    with pytest.raises(FitError, match=r"no classes(.|\n)*predicts(.|\n)*Detector\("):
        RelativeMahalanobis().fit(X)
    with pytest.raises(FitError, match=r"1 predicted class of(.|\n)*Mahalanobis\(\)"):
        RelativeMahalanobis().fit(X, classes=np.zeros(20, dtype=int))
    with pytest.raises(FitError, match="0 predicted classes"):
        RelativeMahalanobis().fit(X[:1], classes=[0])
    for wrong in (classes[:5], classes.astype(float), [["a"]] * 20):
        with pytest.raises(FitError, match="whole numbers"):
            RelativeMahalanobis().fit(X, classes=wrong)
    with pytest.raises(InputsError, match="3 columns"):
        RelativeMahalanobis().fit(X, classes=classes).score_samples(X[:, :3])
    with pytest.raises(SpecError, match="covariance"):
        RelativeMahalanobis("diagonal")
