import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV

from causalmad import open_model
from causalmad.errors import FitError, SiteError
from causalmad.signatures.layer_transitions import _RIDGES, LayerTransitions, _Step
from tests.signatures.families import BLOCKS, small
from tests.twins import layer_transitions as twin
from tests.twins.resampling_profile import read


def layers(model, rows, name):
    paths = {"mlp": ("1", "4"), "conv": ("2", "5")}.get(name) or [BLOCKS[name].format(i) for i in (0, 1)]
    found = []
    for path in paths:
        values = [read(model, row, path, "output") for row in rows]
        found.append(np.stack([v.mean((1, 2)) if name == "conv" else v if v.ndim == 1 else v[-1] for v in values]))
    return [part.astype(np.float64) for part in found]


@pytest.mark.parametrize("name", ["mlp", "conv", "gpt2", "llama", "neox"])
def test_new_and_trusted_inputs_equal_refitting_without_them(name):
    toy, model = small(name, 24, 5)
    fitted = LayerTransitions().fit(open_model(toy.model, batch_size=4), toy.trusted)
    X, Y = layers(model, toy.trusted.main, name)
    x, y = layers(model, toy.fresh.main, name)
    expected = twin.lengths(X, Y, np.concatenate([x, X[:5]]), np.concatenate([y, Y[:5]]), [*[None] * 5, *range(5)])
    values = np.concatenate([fitted(toy.fresh).values, fitted(toy.trusted[:5]).values])
    np.testing.assert_allclose(values, expected, rtol=2e-4, atol=1e-5)


def draw(n, d, e, seed=0):
    numbers = np.random.default_rng(seed)
    A = np.random.default_rng(1).normal(size=(d, e)) / np.sqrt(d)
    x = numbers.normal(size=(n, d)) * np.linspace(0.1, 2, d)
    return x, np.tanh(x @ A) + 0.1 * numbers.normal(size=(n, e))


@pytest.mark.parametrize("n", [15, 20, 60])
def test_the_map_is_scikit_learns_and_so_are_its_residuals(n):
    x, y = draw(n, 20, 7)
    step = _Step.fit(x, y)
    sizes = np.linalg.svd(x - x.mean(0), compute_uv=False)
    cv = RidgeCV(_RIDGES * (sizes**2).mean(), gcv_mode="svd").fit(x, y)
    np.testing.assert_allclose(step.weights, cv.coef_.T, atol=1e-8)
    new, after = draw(9, 20, 7, seed=5)
    found = step.lengths(new, after, np.full(9, -1))
    np.testing.assert_allclose(found[:, 1], np.linalg.norm(after - cv.predict(new), axis=1), rtol=1e-8)
    assert found.shape == (9, 2)  # widths differ: there are no plain differences


@pytest.mark.parametrize(("n", "within"), [(30, 0.3), (42, 0.35), (80, 0.1), (200, 0.05)])
def test_trusted_inputs_look_as_new_ones_do_however_few_they_are(n, within):
    x, y = draw(n, 40, 40)
    step = _Step.fit(x, y)
    new = step.lengths(*draw(400, 40, 40, seed=3), np.full(400, -1))
    honest, naive = (step.lengths(x, y, own) for own in (np.arange(n), np.full(n, -1)))
    ratios = np.median(honest, axis=0)[:2] / np.median(new, axis=0)[:2]
    np.testing.assert_allclose(ratios, 1, atol=within)
    # In sample they would look much less surprising.
    assert (np.median(naive, axis=0)[:2] / np.median(new, axis=0)[:2] < ratios - 0.5 * (n < 50)).all()


def test_an_unusual_step_between_usual_layers_is_surprising():
    x, y = draw(200, 10, 10)
    step = _Step.fit(x, y)
    new, after = draw(100, 10, 10, seed=7)
    none = np.full(100, -1)
    usual, other = step.lengths(new, after, none)[:, 0], step.lengths(new, np.roll(after, 1, axis=0), none)[:, 0]
    assert np.median(other) > 2 * np.quantile(usual, 0.95)


def test_constant_layers_give_finite_numbers():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 3), torch.nn.ReLU())
    model = model.append(torch.nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.zero_()
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    opened = open_model(model)
    fitted = LayerTransitions().fit(opened, opened.inputs(x))
    assert np.isfinite(fitted(x).values).all() and np.isfinite(fitted(x + 1).values).all()


def test_one_site_and_too_few_inputs_are_named():
    toy, _ = small("gpt2")
    with pytest.raises(SiteError, match="one site"):
        LayerTransitions("transformer.h.0").fit(open_model(toy.model), toy.trusted)
    with pytest.raises(FitError, match="2 distinct trusted inputs"):
        LayerTransitions().fit(open_model(toy.model), toy.trusted[:2])
