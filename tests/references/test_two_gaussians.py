import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as draws

from causalmad.errors import FitError, SpecError
from causalmad.references.mahalanobis import Mahalanobis
from causalmad.references.two_gaussians import TwoGaussians, second_gaussian
from tests.references.pools import auroc, planted, pool, restores, rows, stands_alone
from tests.twins import two_gaussians as twin


def whitened_pool(m=60, d=3, seed=0, share=0.3, shift=2.5):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(m, d)) + (np.arange(m) < share * m)[:, None] * shift


@pytest.mark.parametrize("count", [0, 1, 7])
def test_equals_its_slow_twin(count):
    Y = whitened_pool()
    share, mean, covariance = twin.steps(Y, count)[-1]
    # The last update of `second_gaussian` is a maximisation, so `count` iterations are `count` steps of the twin.
    found = second_gaussian(Y, count)
    np.testing.assert_allclose(found.share, share, rtol=1e-9)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-8)
    np.testing.assert_allclose(np.linalg.inv(found.precision), covariance, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(found.log_odds(Y), twin.log_odds(Y, share, mean, covariance), rtol=1e-8, atol=1e-8)


def test_likelihoods_are_those_of_scipys_densities():
    Y = whitened_pool()
    expected = [twin.likelihood(Y, *step) for step in twin.steps(Y, 4)]
    np.testing.assert_allclose(second_gaussian(Y, 5).likelihoods, expected, rtol=1e-8)


@settings(max_examples=40, deadline=None)
@for_all(
    seed=draws.integers(0, 10_000),
    m=draws.integers(2, 40),
    d=draws.integers(1, 6),
    share=draws.floats(0, 1),
    size=draws.sampled_from([0.01, 1.0, 30.0]),
)
def test_the_likelihood_never_falls(seed, m, d, share, size):
    Y = whitened_pool(m, d, seed, share) * size
    likelihoods = np.array(second_gaussian(Y, 50).likelihoods)
    assert np.isfinite(likelihoods).all()
    assert (np.diff(likelihoods) >= -1e-9 * (1 + np.abs(likelihoods).max())).all()


def test_finds_the_second_group_and_its_share():
    draw = np.random.default_rng(0)
    trusted = draw.normal(size=(3000, 4))
    untrusted = np.r_[draw.normal(size=(1500, 4)), draw.normal(size=(500, 4)) * 1.5 + [4, 0, 0, 0]]
    whole = Mahalanobis().fit(trusted).spread
    found = second_gaussian(whole.standardised(untrusted) @ np.linalg.cholesky(whole.precision), 100)
    assert abs(found.share - 0.25) < 0.02
    assert abs(np.linalg.norm(found.mean) - 4) < 0.3
    np.testing.assert_allclose(np.linalg.inv(found.precision), 2.25 * np.eye(4), atol=0.5)


def test_new_rows_of_the_second_group_are_found():
    trusted, untrusted, new, labels = planted(0, d=20)
    one = auroc(TwoGaussians().fit(trusted, untrusted=untrusted), new, labels)
    assert one > 0.95 > auroc(Mahalanobis().fit(trusted), new, labels) + 0.05


@pytest.mark.parametrize("seed", range(3))
def test_no_row_is_the_more_normal_for_being_very_far(seed):
    draw = np.random.default_rng(seed)
    trusted = draw.normal(size=(200, 3))
    tight = np.r_[draw.normal(size=(80, 3)), draw.normal(size=(20, 3)) * 0.05 + [4, 0, 0]]
    fitted = TwoGaussians().fit(trusted, untrusted=tight)
    assert np.linalg.eigvalsh(fitted.matrix).min() > -1e-12


def test_contributions_rows_and_state():
    new = rows(20, seed=3)
    fitted = TwoGaussians().fit(rows(), untrusted=pool())
    np.testing.assert_allclose(fitted.contributions(new).sum(axis=1), -fitted.score_samples(new), rtol=1e-9)
    assert stands_alone(fitted, new) and restores(TwoGaussians(), fitted, new)


def test_errors():
    with pytest.raises(FitError, match="TwoGaussians got no untrusted rows"):
        TwoGaussians().fit(rows())
    with pytest.raises(SpecError, match="iterations"):
        TwoGaussians(0)
