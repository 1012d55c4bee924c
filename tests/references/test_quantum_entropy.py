import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from causalmad.errors import FitError, SpecError, StoreError
from causalmad.references.base import ExplainedReference
from causalmad.references.mahalanobis import Mahalanobis
from causalmad.references.quantum_entropy import QuantumEntropy
from tests.references.pools import auroc, planted, pool, restores, rows, stands_alone
from tests.twins import quantum_entropy as twin


@pytest.mark.parametrize("alpha", [0.0, 0.5, 4.0, 20.0])
def test_equals_its_slow_twin(alpha):
    trusted, untrusted, new = rows(), pool(), rows(9, seed=2)
    found = -QuantumEntropy(alpha).fit(trusted, untrusted=untrusted).score_samples(new)
    np.testing.assert_allclose(found, twin.scores(trusted, untrusted, new, alpha), rtol=1e-7)


def test_the_required_figure_with_mahalanobis_beside_it_on_rows_outside_the_pool():
    found = {"quantum entropy": [], "mahalanobis": [], "unwhitened": []}
    for seed in range(5):
        trusted, untrusted, new, labels = planted(seed)
        found["quantum entropy"].append(auroc(QuantumEntropy().fit(trusted, untrusted=untrusted), new, labels))
        found["mahalanobis"].append(auroc(Mahalanobis().fit(trusted), new, labels))
        found["unwhitened"].append(roc_auc_score(labels, twin.unwhitened(trusted, untrusted, new)))
    assert min(found["quantum entropy"]) >= 0.97
    assert 0.70 < min(found["mahalanobis"]) and max(found["mahalanobis"]) < 0.85
    assert max(found["unwhitened"]) < min(found["quantum entropy"]) - 0.1


def test_alpha_zero_is_mahalanobis_over_d():
    trusted, new = rows(), rows(20, seed=3)
    found = QuantumEntropy(0.0).fit(trusted, untrusted=pool()).score_samples(new)
    np.testing.assert_allclose(5 * found, Mahalanobis().fit(trusted).score_samples(new), rtol=1e-9)


def test_large_alpha_is_the_squared_coordinate_along_the_top_direction():
    trusted, untrusted, new = rows(), pool(), rows(20, seed=3)
    whole = Mahalanobis().fit(trusted).spread
    whitening = np.linalg.cholesky(whole.precision)
    Z = whole.standardised(untrusted) @ whitening
    top = np.linalg.eigh(Z.T @ Z)[1][:, -1]
    found = -QuantumEntropy(1e7).fit(trusted, untrusted=untrusted).score_samples(new)
    np.testing.assert_allclose(found, (whole.standardised(new) @ whitening @ top) ** 2, rtol=1e-6, atol=1e-9)


def test_a_pool_that_is_nowhere_wider_has_nothing_to_choose():
    trusted, new = rows(), rows(20, seed=3)
    narrow = trusted.mean(axis=0) + 0.1 * (rows(40, seed=4) - trusted.mean(axis=0))
    found = QuantumEntropy().fit(trusted, untrusted=narrow).score_samples(new)
    np.testing.assert_allclose(5 * found, Mahalanobis().fit(trusted).score_samples(new), rtol=1e-9)


def test_it_maximises_spread_plus_entropy():
    # The variational characterisation of Q: no other mixture of directions has more of alpha <Q, S>/(|S| - 1) + H(Q).
    trusted = np.random.default_rng(0).normal(size=(4000, 4))
    untrusted = np.random.default_rng(1).normal(size=(500, 4)) * [1, 1, 2, 1.5]
    fitted = QuantumEntropy(4.0).fit(trusted, untrusted=untrusted)
    whole = Mahalanobis().fit(trusted).spread
    half = np.linalg.cholesky(whole.precision)
    Z = whole.standardised(untrusted) @ half
    S = Z.T @ Z / len(Z)
    Q = np.linalg.solve(half, np.linalg.solve(half, fitted.matrix).T)

    def value(Q):
        p = np.linalg.eigvalsh(Q)
        return 4.0 * np.trace(Q @ S) / (np.linalg.eigvalsh(S)[-1] - 1) - (p * np.log(p)).sum()

    assert np.isclose(np.trace(Q), 1)
    for seed in range(20):
        other = np.random.default_rng(seed).normal(size=(4, 4))
        other = other @ other.T
        assert value(0.95 * Q + 0.05 * other / np.trace(other)) < value(Q)


def test_contributions_rows_and_state():
    new = rows(20, seed=3)
    fitted = QuantumEntropy().fit(rows(), untrusted=pool())
    assert isinstance(fitted, ExplainedReference)
    np.testing.assert_allclose(fitted.contributions(new).sum(axis=1), -fitted.score_samples(new), rtol=1e-12)
    assert stands_alone(fitted, new)
    # A peer's loaded detector had lost the pool's covariance.
    assert restores(QuantumEntropy(), fitted, new)
    with pytest.raises(StoreError, match="matrix"):
        QuantumEntropy().restore({**fitted.state(), "matrix": np.eye(4)})


def test_errors():
    with pytest.raises(FitError, match="QuantumEntropy got no untrusted rows"):
        QuantumEntropy().fit(rows())
    with pytest.raises(FitError, match="untrusted rows have 4 columns"):
        QuantumEntropy().fit(rows(), untrusted=rows(20, 4))
    with pytest.raises(FitError, match="1 untrusted row"):
        QuantumEntropy().fit(rows(), untrusted=rows(1))
    with pytest.raises(SpecError, match="alpha"):
        QuantumEntropy(-1.0)
