import numpy as np
import pytest
import torch

from causalmad.errors import FitError, SpecError, StoreError
from causalmad.references.base import ExplainedReference
from causalmad.references.positive_unlabelled import PositiveUnlabelled, risks
from tests.references.pools import auroc, planted, pool, restores, rows, stands_alone
from tests.twins import positive_unlabelled as twin


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_risk_is_the_papers(share):
    draw = np.random.default_rng(0)
    g, h = draw.normal(size=20) * 3, draw.normal(size=30) * 3
    found = risks(torch.from_numpy(g), torch.from_numpy(h), share)
    np.testing.assert_allclose([float(part) for part in found], twin.risks(g, h, share), rtol=1e-12)


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_training_equals_its_slow_twin_also_where_steps_go_against_a_negative_estimate(share):
    trusted, untrusted, new = rows(15, 8), pool(12, 8), rows(9, 8, seed=2)
    spec = PositiveUnlabelled(share, penalty=1e-3, steps=60)
    both = np.r_[trusted, untrusted]
    mean, scale = both.mean(axis=0), both.std(axis=0)
    w, b, against = twin.train((trusted - mean) / scale, (untrusted - mean) / scale, share, 1e-3, 60, 2e-2)
    assert against == 0 if share == 0.3 else against > 5
    found = spec.fit(trusted, untrusted=untrusted).score_samples(new)
    np.testing.assert_allclose(found, (new - mean) / scale @ w + b, rtol=1e-8, atol=1e-10)


def test_new_anomalies_are_found():
    trusted, untrusted, new, labels = planted(0, d=20)
    assert auroc(PositiveUnlabelled().fit(trusted, untrusted=untrusted), new, labels) > 0.95


def test_a_hidden_layer_sees_a_wider_pool():
    draw = np.random.default_rng(0)
    trusted, labels = draw.normal(size=(1000, 2)), np.repeat([0, 1], 500)
    untrusted = draw.normal(size=(1000, 2)) * np.where(np.arange(1000) < 300, 5, 1)[:, None]
    new = draw.normal(size=(1000, 2)) * np.where(labels, 5, 1)[:, None]
    linear = PositiveUnlabelled(0.7).fit(trusted, untrusted=untrusted)
    hidden = PositiveUnlabelled(0.7, hidden=16, penalty=1e-4).fit(trusted, untrusted=untrusted)
    assert auroc(hidden, new, labels) > 0.85 > auroc(linear, new, labels) + 0.1


@pytest.mark.parametrize("hidden", [0, 6])
def test_contributions_rows_and_state(hidden):
    spec, new = PositiveUnlabelled(hidden=hidden, steps=30), rows(20, seed=3)
    fitted = spec.fit(rows(), untrusted=pool())
    assert isinstance(fitted, ExplainedReference)
    np.testing.assert_allclose(fitted.contributions(new).sum(axis=1), -fitted.score_samples(new), rtol=1e-12)
    assert stands_alone(fitted, new) and restores(spec, fitted, new)
    with pytest.raises(StoreError):
        PositiveUnlabelled(hidden=7).restore(fitted.state())


def test_a_hidden_layers_score_is_its_output_and_its_contributions_are_its_slope():
    new = rows(20, seed=3)
    fitted = PositiveUnlabelled(hidden=6, steps=30).fit(rows(), untrusted=pool())
    Z = torch.from_numpy((new - fitted.mean) / fitted.scale).requires_grad_(True)
    inner, bias, out = (torch.tensor(array) for array in (fitted.inner, fitted.inner_bias, fitted.out))
    output = torch.relu(Z @ inner.T + bias) @ out + float(fitted.bias[0])
    np.testing.assert_allclose(fitted.score_samples(new), output.detach().numpy(), rtol=1e-9)
    (slope,) = torch.autograd.grad(output.sum(), Z)
    parts = fitted.contributions(new) + (Z * slope).detach().numpy()
    np.testing.assert_allclose(parts, np.repeat(parts[:, :1], 5, axis=1), rtol=1e-7, atol=1e-12)


def test_the_fit_is_the_seeds_and_leaves_torch_alone():
    before = torch.get_rng_state()
    spec, new = PositiveUnlabelled(hidden=6, steps=20), rows(9, seed=2)
    with torch.no_grad():
        one, same, other = (spec.fit(rows(), untrusted=pool(), seed=seed).score_samples(new) for seed in (0, 0, 1))
    assert (one == same).all() and (one != other).any() and torch.equal(before, torch.get_rng_state())


def test_errors():
    with pytest.raises(FitError, match="PositiveUnlabelled got no untrusted rows"):
        PositiveUnlabelled().fit(rows())
    for options in ({"normal_share": 1.0}, {"hidden": -1}, {"steps": 0}, {"penalty": -1.0}):
        with pytest.raises(SpecError, match=next(iter(options))):
            PositiveUnlabelled(**options)
