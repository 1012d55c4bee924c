import numpy as np
import pytest
import torch

from causalmad.errors import FitError, SpecError, StoreError
from causalmad.references.base import ExplainedReference
from causalmad.references.variational_autoencoder import VariationalAutoencoder
from tests.references.pools import auroc, restores, rows, stands_alone
from tests.twins import variational_autoencoder as twin

SPEC = VariationalAutoencoder(latents=3, hidden=8, steps=40)


@pytest.fixture(scope="module")
def fitted():
    return SPEC.fit(rows())


def test_equals_its_slow_twin(fitted):
    new = np.r_[rows(6, seed=1), 10 * rows(3, seed=2)]
    slow = twin.scores(new, fitted.mean, fitted.scale, fitted.layers, SPEC.beta)
    np.testing.assert_allclose(-fitted.score_samples(new), slow, rtol=1e-9)


def test_scoring_draws_nothing(fitted):
    # A peer draws a code whenever it scores: two scores of one row differed by two thirds of their mean.
    new = rows(20, seed=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = fitted.score_samples(new)
    torch.manual_seed(1)
    assert one.tobytes() == fitted.score_samples(new).tobytes()
    torch.manual_seed(0)
    assert torch.equal(before, torch.get_rng_state())


def test_the_fit_is_the_seeds_and_leaves_torch_alone(fitted):
    new = rows(20, seed=1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with torch.no_grad():
        again, other = SPEC.fit(rows()), SPEC.fit(rows(), seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert again.score_samples(new).tobytes() == fitted.score_samples(new).tobytes()
    assert (other.score_samples(new) != again.score_samples(new)).any()


def test_what_lies_off_the_trusted_curve_is_not_reconstructed():
    draw = np.random.default_rng(0)
    angle = draw.uniform(0, 2 * np.pi, 1500)
    circle = np.c_[np.cos(angle), np.sin(angle)] + 0.05 * draw.normal(size=(1500, 2))
    normal, inside = circle[1000:], 0.3 * circle[1000:]
    trained = VariationalAutoencoder(steps=600, beta=0.01).fit(circle[:1000])
    assert auroc(trained, np.r_[normal, inside], np.repeat([0, 1], 500)) > 0.9  # Mahalanobis finds these too typical


def test_training_lowers_the_score_of_new_normal_rows():
    new = rows(200, seed=1)
    early, late = (VariationalAutoencoder(steps=steps).fit(rows(400)).score_samples(new) for steps in (1, 300))
    assert late.mean() > early.mean() / 2


def test_contributions_rows_and_state(fitted):
    new = rows(20, seed=3)
    assert isinstance(fitted, ExplainedReference)
    np.testing.assert_allclose(fitted.contributions(new).sum(axis=1), -fitted.score_samples(new), rtol=1e-12)
    new[:, 2] += 50 * fitted.scale[2]
    assert (fitted.contributions(new).argmax(axis=1) == 2).all()
    assert stands_alone(fitted, new) and restores(SPEC, fitted, new)
    with pytest.raises(StoreError, match="encode"):
        VariationalAutoencoder(latents=3, hidden=9).restore(fitted.state())


def test_errors():
    with pytest.raises(FitError, match="got 1 trusted row"):
        SPEC.fit(rows(1))
    for option in ("latents", "hidden", "steps"):
        with pytest.raises(SpecError, match=option):
            VariationalAutoencoder(**{option: 0})
    with pytest.raises(SpecError, match="beta"):
        VariationalAutoencoder(beta=-1.0)
