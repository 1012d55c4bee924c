import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from causalmad.errors import FitError, SpecError
from causalmad.references.activation_clustering import ActivationClustering
from tests.references.pools import auroc, planted, pool, restores, rows, stands_alone


def test_is_the_log_ratio_of_distances_to_scikit_learns_centres():
    trusted, untrusted, new = rows(), pool(200, share=0.4, shift=8.0), rows(9, seed=2)
    mean, scale = trusted.mean(axis=0), trusted.std(axis=0)
    pca = PCA(3, svd_solver="full").fit((untrusted - mean) / scale)
    ours, theirs, z = (pca.transform((table - mean) / scale) for table in (trusted, untrusted, new))
    distances = KMeans(2, n_init=10, random_state=0).fit(theirs).transform(z)
    centres = KMeans(2, n_init=10, random_state=0).fit(theirs).cluster_centers_
    normal = int(np.argmin(np.linalg.norm(centres - ours.mean(axis=0), axis=1)))
    found = -ActivationClustering(3).fit(trusted, untrusted=untrusted).score_samples(new)
    np.testing.assert_allclose(found, np.log(distances[:, normal] / distances[:, 1 - normal]), rtol=1e-6)


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_the_cluster_far_from_the_trusted_rows_is_the_anomalous_one_however_large(share):
    # The smaller cluster, which the paper takes, would be the wrong one at 0.8.
    trusted, untrusted, new, labels = planted(0, d=10, share=share, shift=9.0)
    assert auroc(ActivationClustering().fit(trusted, untrusted=untrusted), new, labels) > 0.95


def test_rows_and_state():
    spec, new = ActivationClustering(), np.r_[rows(20, seed=3), 1e20 * rows(2)]
    fitted = spec.fit(rows(), untrusted=pool())
    assert np.isfinite(fitted.score_samples(new)).all()
    assert stands_alone(fitted, new) and restores(spec, fitted, new)


def test_a_pool_of_equal_rows_tells_nothing_apart():
    fitted = ActivationClustering().fit(rows(), untrusted=np.repeat(rows(1), 9, axis=0))
    np.testing.assert_allclose(fitted.score_samples(rows(5, seed=1)), 0, atol=1e-9)


def test_errors():
    with pytest.raises(FitError, match="ActivationClustering got no untrusted rows"):
        ActivationClustering().fit(rows())
    with pytest.raises(SpecError, match="components"):
        ActivationClustering(0)
