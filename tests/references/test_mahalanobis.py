import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as draws
from sklearn.covariance import LedoitWolf, MinCovDet, ledoit_wolf_shrinkage, oas
from sklearn.decomposition import PCA

from causalmad.errors import FitError, InputsError, SpecError, StoreError
from causalmad.references.base import ExplainedReference, FittedReference, Reference
from causalmad.references.chunks import Passes
from causalmad.references.covariance import Summary, constant_columns, left_out_distances, spread
from causalmad.references.mahalanobis import COVARIANCES, Mahalanobis
from tests.twins import mahalanobis as twin

SHRUNK = ("ledoit-wolf", "oas")
LINEAR = ("ledoit-wolf", "oas", "empirical", "diagonal")
CLOSED = COVARIANCES[:5]  # all but "robust", which searches
SPECS = [Mahalanobis(covariance, two_sided) for covariance in CLOSED for two_sided in (False, True)]
SPECS.append(Mahalanobis("robust"))


def rows(n=60, d=5, seed=0, spread=True):
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(d, d)) if spread else np.eye(d)
    units = 10.0 ** random.integers(-4, 4, size=d) if spread else 1.0
    return random.normal(size=(n, d)) @ mixing * units + units


def anomaly(fitted, X):
    return -fitted.score_samples(X)


@pytest.mark.parametrize("covariance", [*LINEAR, "low-rank"])
@pytest.mark.parametrize(("n", "d"), [(40, 4), (300, 3)])
def test_equals_its_slow_twin(covariance, n, d):
    trusted, new = rows(n, d), rows(7, d, seed=1)
    expected = twin.distances(trusted, new, covariance)
    np.testing.assert_allclose(anomaly(Mahalanobis(covariance, rank=2).fit(trusted), new), expected, rtol=1e-9)


@pytest.mark.parametrize("covariance", LINEAR)
@pytest.mark.parametrize(("n", "d"), [(12, 4), (9, 6), (40, 2)])
def test_left_out_distances_equal_refits(covariance, n, d):
    trusted = rows(n, d)
    table = Summary.of(Passes(trusted))
    fast = left_out_distances([trusted], table, spread([trusted], table, covariance, 1e-9), 1e-9)
    np.testing.assert_allclose(fast, twin.left_out(trusted, covariance), rtol=1e-7)


@pytest.mark.parametrize(("n", "d"), [(2, 3), (10, 30), (50, 50), (400, 10), (30, 1)])
def test_shrinkage_is_scikit_learns_on_standardised_rows(n, d):
    X = rows(n, d)
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    assert np.isclose(Mahalanobis("ledoit-wolf").fit(X).spread.shrinkage, ledoit_wolf_shrinkage(Z), rtol=1e-9)
    assert np.isclose(Mahalanobis("oas").fit(X).spread.shrinkage, oas(Z)[1], rtol=1e-9)
    np.testing.assert_allclose(anomaly(Mahalanobis().fit(X), X), LedoitWolf().fit(Z).mahalanobis(Z), rtol=1e-6)


@pytest.mark.parametrize("covariance", SHRUNK)
def test_identity_covariance_shrinks_to_the_identity_not_to_its_trace(covariance):
    X = np.random.default_rng(0).normal(size=(2000, 100))
    precision = Mahalanobis(covariance).fit(X).spread.precision
    np.testing.assert_allclose(precision, np.eye(100), atol=0.05)
    assert abs(anomaly(Mahalanobis(covariance).fit(X), X).mean() - 100) < 2


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_units_do_not_matter(spec):
    trusted, new, units = rows(), rows(seed=1), 10.0 ** np.arange(-7, 8, 3)
    plain = spec.fit(trusted).score_samples(new)
    np.testing.assert_allclose(
        spec.fit(trusted * units + 3 * units).score_samples(new * units + 3 * units), plain, rtol=1e-6
    )


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("d", [1, 2, 3, 17, 64, 130])
def test_a_row_scores_the_same_to_the_last_bit_in_any_company(spec, d):
    d = min(d, 17) if spec.covariance == "robust" else d
    fitted, new = spec.fit(rows(200, d)), rows(67, d, seed=1)
    together = fitted.score_samples(new)
    alone = np.concatenate([fitted.score_samples(new[i : i + 1]) for i in range(len(new))])
    assert (together == alone).all()
    order = np.random.default_rng(2).permutation(len(new))
    assert (fitted.score_samples(new[order]) == together[order]).all()
    assert (fitted.score_samples(np.asfortranarray(new)) == together).all()
    assert fitted.score_samples(new[:0]).shape == (0,)


@pytest.mark.parametrize("spec", SPECS[:-1], ids=str)
@settings(max_examples=25, deadline=None)
@for_all(seed=draws.integers(0, 10**6), n=draws.integers(3, 60), d=draws.integers(1, 12), far=draws.floats(0, 1e6))
def test_contributions_sum_to_the_score(spec, seed, n, d, far):
    if spec.two_sided and spec.covariance == "empirical":
        n = max(n, d + 2)
    trusted = rows(n, d, seed)
    fitted = spec.fit(trusted)
    new = np.concatenate([trusted, rows(5, d, seed + 1) * (1 + far), fitted.spread.mean[None]])
    np.testing.assert_allclose(fitted.contributions(new).sum(axis=1), anomaly(fitted, new), rtol=1e-9)


def test_contributions_name_the_column_that_departs():
    trusted = rows(300, 6, spread=False)
    odd = trusted[:1].copy()
    odd[0, 3] += 12
    assert Mahalanobis().fit(trusted).contributions(odd)[0].argmax() == 3


def test_two_sided_sees_rows_that_are_too_typical_and_one_sided_does_not():
    trusted = np.random.default_rng(0).normal(size=(300, 20))
    fresh = np.random.default_rng(1).normal(size=(300, 20))
    typical = fresh * 0.3
    one, two = Mahalanobis().fit(trusted), Mahalanobis(two_sided=True).fit(trusted)
    assert (anomaly(one, typical) < np.median(anomaly(one, fresh))).all()
    assert np.median(anomaly(two, typical)) > np.quantile(anomaly(two, fresh), 0.99)
    assert np.median(anomaly(two, fresh * 3)) > np.quantile(anomaly(two, fresh), 0.99)


@pytest.mark.parametrize(
    ("covariance", "n", "d"),
    [*((covariance, 200, 20) for covariance in COVARIANCES), *((covariance, 120, 60) for covariance in CLOSED)],
)
def test_two_sided_is_centred_on_fresh_rows(covariance, n, d):
    # In-sample distances would put the centre of these fits up to 8 widths too low.
    fitted = Mahalanobis(covariance, two_sided=True).fit(np.random.default_rng(0).normal(size=(n, d)))
    fresh = np.random.default_rng(1).normal(size=(4000, d))
    centre, width = fitted.two_sided
    logs = np.log(anomaly(Mahalanobis(covariance).fit(np.random.default_rng(0).normal(size=(n, d))), fresh))
    assert abs(np.median(logs) - centre) < 0.4 * width
    assert 0.6 < 1.4826 * np.median(np.abs(logs - np.median(logs))) / width < 1.6


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("value", [0.0, 0.1, -3e7, 1e-30])
def test_leaving_a_constant_column_is_anomalous_and_finite(spec, value):
    trusted = np.c_[rows(50, 3, spread=False), np.full(50, value)]
    fitted = spec.fit(trusted)
    new = np.repeat(trusted[:1], 4, axis=0)
    new[1:, 3] += max(1.0, abs(value)) * np.array([0.1, 1, 10])
    scores = anomaly(fitted, new)
    assert np.isfinite(scores).all() and (np.diff(scores) > 0).all()
    if not spec.two_sided:
        without = anomaly(spec.fit(trusted[:, :3]), new[:1, :3])
        np.testing.assert_allclose(scores[:1], without, rtol=1e-9)
        assert fitted.contributions(new)[3].argmax() == 3


def test_rounding_of_a_constant_column_is_no_departure():
    trusted = np.c_[rows(50, 3, spread=False), np.full(50, 0.1)].astype(np.float32)
    trusted[7, 3] = np.nextafter(np.float32(0.1), np.float32(1))
    assert constant_columns(trusted.astype(float), np.finfo(np.float32).eps).tolist() == [False] * 3 + [True]
    fitted = Mahalanobis().fit(trusted)
    assert abs(fitted.contributions(trusted)[:, 3]).max() < 1e-5


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_all_columns_constant(spec):
    fitted = spec.fit(np.ones((10, 3)))
    same, other = anomaly(fitted, np.array([[1.0, 1, 1], [1, 2, 1]]))
    assert np.isfinite([same, other]).all() and other > same == 0


@pytest.mark.parametrize("covariance", CLOSED)
def test_duplicate_columns(covariance):
    trusted = rows(80, 3, spread=False)[:, [0, 1, 2, 1]]
    fitted = Mahalanobis(covariance).fit(trusted)
    assert np.isfinite(anomaly(fitted, trusted)).all()
    if covariance != "diagonal":
        # How fast the score rises when the two no longer agree, against the same column without its duplicate.
        whole = Mahalanobis(covariance).fit(trusted[:, :3]).spread.precision
        assert fitted.spread.precision[3, 3] > 1.2 * whole[1, 1]
        np.testing.assert_allclose(*fitted.contributions(trusted)[:, [1, 3]].T, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("covariance", CLOSED)
@pytest.mark.parametrize("n", [2, 3, 10])
def test_fewer_rows_than_columns(covariance, n):
    trusted = rows(n, 20, spread=False)
    scores = anomaly(Mahalanobis(covariance).fit(trusted), np.r_[trusted, trusted + 5])
    assert np.isfinite(scores).all() and scores[:n].max() < scores[n:].min()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_huge_and_tiny_numbers_stay_finite(spec):
    trusted = rows(50, 3, spread=False)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        scores = anomaly(spec.fit(trusted), np.full((1, 3), 1e308))
        assert np.isfinite(scores).all() and scores[0] > anomaly(spec.fit(trusted), trusted).max()
        assert np.isfinite(spec.fit(trusted * 1e-200).score_samples(trusted)).all()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_restored_scores_are_bit_equal(spec):
    trusted, new = np.c_[rows(), np.ones(60)], np.c_[rows(seed=1), np.ones(60)]
    fitted = spec.fit(trusted)
    state = {name: array.copy() for name, array in fitted.state().items()}
    assert (spec.restore(state).score_samples(new) == fitted.score_samples(new)).all()
    assert (spec.restore(state).contributions(new) == fitted.contributions(new)).all()
    with pytest.raises(StoreError, match="mean"):
        spec.restore({name: array for name, array in state.items() if name != "mean"})
    with pytest.raises(StoreError, match="scale has shape"):
        spec.restore({**state, "scale": state["scale"][:2]})
    with pytest.raises(StoreError, match="scale"):
        spec.restore({**state, "scale": -state["scale"]})


def test_a_fit_cannot_be_changed_and_does_not_change_the_rows():
    trusted = rows()
    kept = trusted.copy()
    fitted = Mahalanobis().fit(trusted)
    assert (trusted == kept).all() and trusted.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        fitted.spread.mean[0] = 1


def test_is_what_the_interfaces_say():
    assert isinstance(Mahalanobis(), Reference)
    assert isinstance(Mahalanobis().fit(rows()), FittedReference)
    assert isinstance(Mahalanobis().fit(rows()), ExplainedReference)


@pytest.mark.parametrize(
    ("X", "words"),
    [
        (np.ones(5), r"\(5,\).*\n.*\n.*one row without"),
        (np.ones((1, 4)), "got 1 trusted row\n.*at least 2"),
        (np.ones((0, 4)), "got 0 trusted rows"),
        (np.ones((4, 0)), "0 columns"),
        ([["a", "b"]], "dtype"),
        ([[1.0], [1.0, 2.0]], "no table"),
        (np.ones((3, 2), dtype=complex), "complex"),
        (np.full((3, 3), 1e200) * np.arange(3)[:, None], r"2e\+200"),
    ],
)
def test_bad_trusted_rows_are_named(X, words):
    with pytest.raises(FitError, match=words):
        Mahalanobis().fit(X)


def test_broken_numbers_are_named_by_column_and_row():
    X = rows(20, 4)
    X[3, 1], X[11, 2] = np.nan, np.inf
    with pytest.raises(FitError, match=r"columns 1, 2 \(rows 3, 11\)"):
        Mahalanobis().fit(X)
    fitted = Mahalanobis().fit(rows(20, 4))
    with pytest.raises(InputsError, match=r"columns 1, 2 \(rows 3, 11\)"):
        fitted.score_samples(X)
    with pytest.raises(InputsError, match=r"3 columns\n.*4 columns"):
        fitted.contributions(X[:, :3])


def test_two_sided_needs_rows():
    with pytest.raises(FitError, match="at least 3"):
        Mahalanobis(two_sided=True).fit(rows(2, 2))
    with pytest.raises(FitError, match="ledoit-wolf"):
        Mahalanobis("empirical", two_sided=True).fit(rows(6, 5))


def test_bad_options_are_named():
    with pytest.raises(SpecError, match="'oas'"):
        Mahalanobis("oass")
    with pytest.raises(SpecError, match="rcond"):
        Mahalanobis(rcond=0)
    with pytest.raises(SpecError, match="rank=0"):
        Mahalanobis("low-rank", rank=0)


def test_low_rank_is_probabilistic_pca():
    X = rows(200, 12)
    Z, n = (X - X.mean(axis=0)) / X.std(axis=0), len(X)
    fitted = Mahalanobis("low-rank", rank=3).fit(X)
    expected = PCA(3, svd_solver="full").fit(Z).get_precision() * n / (n - 1)  # scikit-learn divides by n - 1
    np.testing.assert_allclose(fitted.spread.precision, expected, rtol=1e-8, atol=1e-10)
    empirical = Mahalanobis("empirical").fit(X)
    np.testing.assert_allclose(Mahalanobis("low-rank", rank=40).fit(X).score_samples(X), empirical.score_samples(X))


def test_robust_is_scikit_learns():
    X = rows(300, 4)
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    found, expected = anomaly(Mahalanobis("robust").fit(X, seed=3), X), MinCovDet(random_state=0).fit(Z).mahalanobis(Z)
    np.testing.assert_allclose(found, expected, rtol=0.05)  # both search from random starts
    assert (anomaly(Mahalanobis("robust").fit(X, seed=3), X) == found).all()


def test_odd_trusted_rows_do_not_mask_themselves_from_robust():
    X = rows(300, 4, spread=False)
    X[:45] = X[:45] * 0.1 + np.array([8.0, -8, 8, 0])
    robust, usual = anomaly(Mahalanobis("robust").fit(X), X), anomaly(Mahalanobis().fit(X), X)
    assert robust[:45].min() > 5 * robust[45:].max()
    assert usual[:45].max() < usual[45:].max()


def test_robust_says_what_it_needs():
    with pytest.raises(FitError, match=r"at least 42 rows(.|\n)*low-rank"):
        Mahalanobis("robust").fit(rows(30, 20))
    X = rows(60, 3)
    with pytest.raises(FitError, match="span fewer directions"):
        Mahalanobis("robust").fit(X[:, [0, 1, 2, 2]])
