import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from causalmad.errors import FitError, SpecError, StoreError
from causalmad.references.base import ExplainedReference
from causalmad.references.trusted_versus_untrusted import TrustedVersusUntrusted
from tests.references.pools import auroc, planted, pool, restores, rows, stands_alone


def oracle(trusted, untrusted, fitted):
    """scikit-learn's models, one without each part of the rows."""
    both = np.r_[trusted, untrusted]
    parts = np.array([fitted._unseen_by[digest] for digest in _digests(both)])
    theirs = np.arange(len(both)) >= len(trusted)
    models = []
    for part in range(len(fitted.mean)):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000))
        models.append(model.fit(both[parts != part], theirs[parts != part]))
    return models, parts


def _digests(X):
    from causalmad.references.trusted_versus_untrusted import _digests

    return _digests(X).tolist()


def test_a_new_row_has_the_mean_log_odds_and_a_known_row_those_of_the_model_that_has_not_seen_it():
    trusted, untrusted, new = rows(), pool(), rows(9, seed=2)
    fitted = TrustedVersusUntrusted().fit(trusted, untrusted=untrusted)
    models, parts = oracle(trusted, untrusted, fitted)
    expected = np.mean([model.decision_function(new) for model in models], axis=0)
    np.testing.assert_allclose(-fitted.score_samples(new), expected, rtol=1e-6)
    both = np.r_[trusted, untrusted]
    expected = [models[part].decision_function(row[None])[0] for part, row in zip(parts, both)]
    np.testing.assert_allclose(-fitted.score_samples(both), expected, rtol=1e-6)


def test_parts_hold_equal_shares_of_both_kinds_and_equal_rows_together():
    trusted, untrusted = rows(50), pool(25)
    fitted = TrustedVersusUntrusted().fit(np.r_[trusted, trusted[:7]], untrusted=np.r_[untrusted, trusted[:3]])
    assert np.bincount(fitted.parts).tolist() == [15] * 5 and len(fitted.digests) == 75
    ours = [fitted._unseen_by[digest] for digest in _digests(trusted)]
    assert np.bincount(ours).tolist() == [10] * 5


def test_known_rows_of_the_pool_do_not_look_untrusted_where_nothing_differs():
    # Without cross-fitting a model in many columns knows its own training rows: the mistake of testing on the pool.
    draw = np.random.default_rng(0)
    trusted, untrusted = draw.normal(size=(60, 100)), draw.normal(size=(60, 100))
    both, labels = np.r_[trusted, untrusted], np.repeat([0, 1], 60)
    fitted = TrustedVersusUntrusted().fit(trusted, untrusted=untrusted)
    one = LogisticRegression(C=0.01).fit(both, labels).decision_function(both)
    assert ((one > 0) == labels).mean() > 0.85
    assert 0.3 < auroc(fitted, both, labels) < 0.7


def test_new_anomalies_are_found():
    trusted, untrusted, new, labels = planted(0, d=20)
    assert auroc(TrustedVersusUntrusted().fit(trusted, untrusted=untrusted), new, labels) > 0.9


def test_signed_zeros_are_one_content():
    trusted = np.c_[rows(), np.zeros(60)]
    fitted = TrustedVersusUntrusted().fit(trusted, untrusted=np.c_[pool(), np.zeros(50)])
    other = trusted.copy()
    other[:, 5] = -0.0
    assert (fitted.score_samples(trusted) == fitted.score_samples(other)).all()


def test_contributions_rows_and_state():
    spec = TrustedVersusUntrusted()
    fitted = spec.fit(rows(), untrusted=pool())
    new = np.r_[rows(20, seed=3), rows()[:5], pool()[:5]]
    assert isinstance(fitted, ExplainedReference)
    np.testing.assert_allclose(fitted.contributions(new).sum(axis=1), -fitted.score_samples(new), rtol=1e-12)
    assert stands_alone(fitted, new) and restores(spec, fitted, new)
    with pytest.raises(StoreError, match="parts"):
        spec.restore({**fitted.state(), "parts": fitted.parts + 1})


def test_the_division_is_the_seeds():
    new = rows(9, seed=2)
    one, same, other = (
        TrustedVersusUntrusted().fit(rows(), untrusted=pool(), seed=seed).score_samples(new) for seed in (0, 0, 1)
    )
    assert (one == same).all() and (one != other).any()


def test_few_rows_make_fewer_parts():
    assert len(TrustedVersusUntrusted().fit(rows(3), untrusted=pool(40)).mean) == 3


def test_errors():
    with pytest.raises(FitError, match="TrustedVersusUntrusted got no untrusted rows"):
        TrustedVersusUntrusted().fit(rows())
    with pytest.raises(FitError, match="0 distinct untrusted rows"):
        TrustedVersusUntrusted().fit(rows(), untrusted=rows())
    for options in ({"folds": 1}, {"strength": 0.0}):
        with pytest.raises(SpecError, match=next(iter(options))):
            TrustedVersusUntrusted(**options)
