import numpy as np
import pytest
from sklearn.decomposition import PCA

from causalmad.errors import FitError
from causalmad.references.spectral_signatures import SpectralSignatures
from tests.references.pools import auroc, planted, pool, restores, rows, stands_alone


def test_is_the_squared_first_principal_coordinate_of_the_pool():
    trusted, untrusted, new = rows(), pool(), rows(9, seed=2)
    mean, scale = trusted.mean(axis=0), trusted.std(axis=0)
    oracle = PCA(1, svd_solver="full").fit((untrusted - mean) / scale)
    found = -SpectralSignatures().fit(trusted, untrusted=untrusted).score_samples(new)
    np.testing.assert_allclose(found, oracle.transform((new - mean) / scale)[:, 0] ** 2, rtol=1e-8)


def test_units_of_columns_do_not_matter():
    trusted, untrusted, new = rows(), pool(), rows(9, seed=2)
    one = SpectralSignatures().fit(trusted, untrusted=untrusted).score_samples(new)
    units = 10.0 ** np.array([3, -2, 0, 5, -6])
    other = SpectralSignatures().fit(trusted * units, untrusted=untrusted * units).score_samples(new * units)
    np.testing.assert_allclose(one, other, rtol=1e-8)


def test_a_loud_anomaly_is_found():
    trusted, untrusted, new, labels = planted(0, d=10, share=0.3, shift=8.0)
    assert auroc(SpectralSignatures().fit(trusted, untrusted=untrusted), new, labels) > 0.9


def test_contributions_rows_and_state():
    new = rows(20, seed=3)
    fitted = SpectralSignatures().fit(rows(), untrusted=pool())
    np.testing.assert_allclose(fitted.contributions(new).sum(axis=1), -fitted.score_samples(new), rtol=1e-12)
    assert stands_alone(fitted, new) and restores(SpectralSignatures(), fitted, new)


def test_no_untrusted_rows_is_an_error():
    with pytest.raises(FitError, match="SpectralSignatures got no untrusted rows"):
        SpectralSignatures().fit(rows())
