import numpy as np
import pytest

from causalmad.errors import FitError
from causalmad.references.likelihood_ratio import LikelihoodRatio
from tests.references.pools import auroc, planted, pool, restores, rows, stands_alone
from tests.twins import likelihood_ratio as twin


@pytest.mark.parametrize(("n", "m"), [(60, 50), (40, 9), (9, 200)])
def test_equals_its_slow_twin(n, m):
    trusted, untrusted, new = rows(n), pool(m), rows(9, seed=2)
    found = -LikelihoodRatio().fit(trusted, untrusted=untrusted).score_samples(new)
    np.testing.assert_allclose(found, twin.scores(trusted, untrusted, new), rtol=1e-7, atol=1e-7)


def test_a_pool_with_anomalies_is_told_apart_on_new_rows():
    trusted, untrusted, new, labels = planted(0, d=20, share=0.3)
    assert auroc(LikelihoodRatio().fit(trusted, untrusted=untrusted), new, labels) > 0.95


def test_directions_in_which_nothing_varies_hold_no_evidence():
    # With so many rows there is next to no shrinkage, which a duplicate column changes.
    trusted, untrusted, new = rows(20_000), pool(20_000), rows(9, seed=2)
    plain = LikelihoodRatio().fit(trusted, untrusted=untrusted).score_samples(new)
    wide = [np.c_[table, table[:, 1], np.full(len(table), 3.0)] for table in (trusted, untrusted, new)]
    found = LikelihoodRatio().fit(wide[0], untrusted=wide[1])
    assert np.isfinite(found.score_samples(wide[2])).all()
    assert np.corrcoef(plain, found.score_samples(wide[2]))[0, 1] > 0.999
    off = wide[2].copy()
    off[:, 6] += 1.0
    np.testing.assert_allclose(found.score_samples(off), found.score_samples(wide[2]), rtol=1e-9)


def test_contributions_rows_and_state():
    new = rows(20, seed=3)
    fitted = LikelihoodRatio().fit(rows(), untrusted=pool())
    np.testing.assert_allclose(fitted.contributions(new).sum(axis=1), -fitted.score_samples(new), rtol=1e-9)
    assert stands_alone(fitted, new) and restores(LikelihoodRatio(), fitted, new)


def test_no_untrusted_rows_is_an_error():
    with pytest.raises(FitError, match="LikelihoodRatio got no untrusted rows"):
        LikelihoodRatio().fit(rows())
