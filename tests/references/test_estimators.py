import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.covariance import EllipticEnvelope
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from causalmad.errors import FitError, InputsError, SpecError
from causalmad.references.estimators import WORKING, FittedEstimator, fit_reference
from causalmad.references.mahalanobis import FittedMahalanobis, Mahalanobis

ESTIMATORS = [
    IsolationForest(n_estimators=20),
    LocalOutlierFactor(novelty=True),
    KernelDensity(),
    GaussianMixture(2),
    OneClassSVM(),
    EllipticEnvelope(),
    make_pipeline(StandardScaler(), IsolationForest(n_estimators=20)),
]
trusted = np.random.default_rng(0).normal(size=(80, 3))


def each_estimator(test):
    return pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda one: type(one).__name__)(test)


@each_estimator
def test_higher_is_more_normal_and_the_estimator_stays_as_it_was(estimator):
    before = {key: repr(value) for key, value in estimator.get_params().items()}
    attributes = set(vars(estimator))
    fitted = fit_reference(estimator, trusted, seed=1)
    near, far = fitted.score_samples(np.array([[0.0, 0, 0], [6, 6, 6]]))
    assert near > far
    assert {key: repr(value) for key, value in estimator.get_params().items()} == before
    assert set(vars(estimator)) == attributes
    assert fitted.score_samples(trusted[:0]).shape == (0,)


@each_estimator
def test_same_seed_same_bits_and_no_global_numbers(estimator):
    state = np.random.get_state()  # noqa: NPY002
    first = fit_reference(estimator, trusted, seed=3).score_samples(trusted)
    again = fit_reference(estimator, trusted, seed=3).score_samples(trusted)
    assert (first == again).all()
    assert str(np.random.get_state()) == str(state)  # noqa: NPY002


def test_a_random_state_of_the_user_is_kept():
    kept = fit_reference(IsolationForest(random_state=5), trusted, seed=3)
    assert isinstance(kept, FittedEstimator) and kept.estimator.random_state == 5
    expected = IsolationForest(random_state=5).fit(trusted).score_samples(trusted)
    assert (kept.score_samples(trusted) == expected).all()
    seeded = fit_reference(make_pipeline(StandardScaler(), IsolationForest()), trusted, seed=3)
    assert isinstance(seeded.estimator[-1].random_state, int)


def test_every_working_example_that_errors_name_works():
    import sklearn.ensemble
    import sklearn.mixture
    import sklearn.neighbors
    import sklearn.svm

    import causalmad.references

    for text in WORKING:
        call = text.partition("(")
        owner, _, name = call[0].rpartition(".")
        owner = causalmad.references if owner.startswith("causalmad") else getattr(sklearn, owner.rpartition(".")[2])
        made = getattr(owner, name)(**({"novelty": True} if "novelty" in text else {}))
        assert np.isfinite(fit_reference(made, trusted).score_samples(trusted)).all()


@pytest.mark.parametrize("estimator", [LogisticRegression(), KMeans(), StandardScaler(), object(), 3])
def test_what_cannot_score_is_refused_with_what_can(estimator):
    with pytest.raises(SpecError, match=rf"{type(estimator).__name__} has no score_samples(.|\n)*IsolationForest\(\)"):
        fit_reference(estimator, trusted)


def test_local_outlier_factor_needs_novelty():
    with pytest.raises(SpecError, match=r"without novelty=True(.|\n)*Try: .*LocalOutlierFactor\(novelty=True\)"):
        fit_reference(LocalOutlierFactor(), trusted)


def test_a_class_is_no_reference():
    with pytest.raises(SpecError, match=r"Try: IsolationForest\(\)"):
        fit_reference(IsolationForest, trusted)


def test_our_own_references_and_plug_ins_are_fitted_as_they_are():
    assert isinstance(fit_reference(Mahalanobis(), trusted), FittedMahalanobis)

    class FromMean:
        calls = 0

        def fit(self, X):
            self.calls += 1
            self.mean = np.mean(X, axis=0)
            return self

        def score_samples(self, X):
            return -np.abs(X - self.mean).sum(axis=1)

    plug_in = FromMean()
    assert fit_reference(plug_in, trusted).score_samples(trusted).shape == (80,)
    assert not plug_in.calls


def test_bad_rows_and_failed_fits_are_named():
    broken = trusted.copy()
    broken[2, 1] = np.nan
    with pytest.raises(FitError, match=r"column 1 \(row 2\)"):
        fit_reference(KernelDensity(), broken)
    with pytest.raises(InputsError, match=r"column 1 \(row 2\)"):
        fit_reference(KernelDensity(), trusted).score_samples(broken)
    with pytest.raises(FitError, match="GaussianMixture could not be fitted on 2 trusted rows"):
        fit_reference(GaussianMixture(5), trusted[:2])


def test_scores_that_are_not_one_number_a_row_are_refused():
    class Broken(KernelDensity):
        def score_samples(self, X):
            return np.full(len(X), np.nan)

    with pytest.raises(InputsError, match=r"Broken\.score_samples gave"):
        fit_reference(Broken(), trusted).score_samples(trusted)


def test_a_plug_in_whose_fit_gives_nothing_is_refused():
    class Forgets:
        def fit(self, X):
            return None

    with pytest.raises(SpecError, match="Forgets has no score_samples"):
        fit_reference(Forgets(), trusted)
