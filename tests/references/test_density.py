import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

from causalmad.errors import FitError, SpecError, StoreError
from causalmad.references.density import Density, Mixture
from causalmad.references.whitening import leading, spread_of
from tests.references.pools import restores, rows, stands_alone


def whitened(trusted, new, most):
    """Whitened coordinates by scikit-learn (of the covariance with n in place of n - 1), and the residual energy."""
    mean, scale = trusted.mean(axis=0), trusted.std(axis=0)
    pca = PCA(most, svd_solver="full").fit((trusted - mean) / scale)
    standardised = (new - mean) / scale
    z = pca.transform(standardised)
    rest = standardised - pca.inverse_transform(z)
    return z / np.sqrt(pca.explained_variance_ * (1 - 1 / len(trusted))), (rest**2).sum(axis=1)


def expected(trusted, new, most, log_density):
    ours, energies = whitened(trusted, trusted, most)
    z, energy = whitened(trusted, new, most)
    return log_density(ours, z) - (energy - energies.mean()) / energies.std()


@pytest.mark.parametrize("most", [1, 3])
def test_kernel_is_scikit_learns_kernel_density(most):
    trusted, new = rows(80), np.r_[rows(20, seed=1), 5 * rows(4, seed=2)]

    def oracle(ours, z):
        return KernelDensity(bandwidth="scott").fit(ours).score_samples(z)

    found = Density(components=most).fit(trusted).score_samples(new)
    np.testing.assert_allclose(found, expected(trusted, new, most, oracle), rtol=1e-7)


@pytest.mark.parametrize("groups", [1, 2])
def test_mixture_is_scikit_learns_with_the_lowest_bic(groups):
    trusted = rows(200)
    trusted[: 100 * (groups - 1)] += 6 * trusted.std(axis=0)
    new = rows(20, seed=1)

    def oracle(ours, z):
        models = [GaussianMixture(k, reg_covar=1e-3, max_iter=300, random_state=3).fit(ours) for k in range(1, 6)]
        return min(models, key=lambda model: model.bic(ours)).score_samples(z)

    fitted = Density("mixture", components=2).fit(trusted, seed=3)
    assert len(fitted.density.weights) == groups
    np.testing.assert_allclose(fitted.score_samples(new), expected(trusted, new, 2, oracle), rtol=1e-5)


def test_a_mixture_has_scipys_log_density():
    from scipy.stats import multivariate_normal

    roots = np.array([np.triu(np.ones((2, 2))) * [[1.0, 2], [0, 3]], np.eye(2)])
    mixture = Mixture(np.array([0.3, 0.7]), np.array([[0.0, 1], [2, 2]]), roots)
    z = rows(6, 2)
    parts = [
        weight * multivariate_normal(mean, np.linalg.inv(root @ root.T)).pdf(z)
        for weight, mean, root in zip(mixture.weights, mixture.means, roots)
    ]
    np.testing.assert_allclose(mixture.log_density(z), np.log(sum(parts)), rtol=1e-9)


@pytest.mark.parametrize("method", ["kernel", "mixture"])
def test_dense_is_normal_and_far_is_not(method):
    # A peer scored with the sign turned round: the mode was the most anomalous point of all.
    trusted = np.random.default_rng(0).normal(size=(300, 4))
    scores = Density(method).fit(trusted).score_samples(np.array([[0.0], [2], [4], [50]]) * np.ones(4))
    assert (np.diff(scores) < 0).all()


def test_departures_beside_the_leading_directions_count():
    draw = np.random.default_rng(0)
    trusted = draw.normal(size=(300, 2)) @ draw.normal(size=(2, 8)) + 0.01 * draw.normal(size=(300, 8))
    units, _ = spread_of(trusted, 1e-16)
    basis = leading(trusted, units, 2, whiten=True)
    beside = np.linalg.svd(basis.directions)[2][-1] * units.scale
    fitted = Density(components=2).fit(trusted)
    assert fitted.score_samples(trusted[:1] + beside) < fitted.score_samples(trusted).min() - 10


@pytest.mark.parametrize("spec", [Density(), Density("mixture"), Density(components=2)], ids=str)
def test_rows_and_state(spec):
    trusted, new = rows(), np.r_[rows(300, seed=3), 1e20 * rows(3)]
    fitted = spec.fit(trusted)
    assert np.isfinite(fitted.score_samples(new)).all()
    assert stands_alone(fitted, new) and restores(spec, fitted, new)
    with pytest.raises(StoreError, match="directions"):
        spec.restore({name: array for name, array in fitted.state().items() if name != "directions"})


def test_errors():
    with pytest.raises(FitError, match="got 2 trusted rows"):
        Density().fit(rows(2))
    with pytest.raises(SpecError, match="'mixture'"):
        Density("mixtures")
    with pytest.raises(SpecError, match="components"):
        Density(components=0)
