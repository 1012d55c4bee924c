import numpy as np
import pytest
from sklearn.linear_model import RidgeCV

from causalmad import open_model
from causalmad.errors import FitError
from causalmad.signatures import Activations, AttributionPatching, Conditional, OutputOnly
from causalmad.signatures.conditional import Ridge
from causalmad.testing.toys import toy
from tests.signatures.combined import survives
from tests.twins.conditional import conditional

MADE = toy("mlp", trusted=40, fresh=6)
MODEL = open_model(MADE.model)
GRID = np.logspace(-4, 4, 17)


def drawn(n, c, d, noise=0.5, seed=0):
    draw = np.random.default_rng(seed)
    given = draw.normal(size=(n, c)) * draw.uniform(0.1, 9, c) + 3
    return given, given @ draw.normal(size=(c, d)) / np.sqrt(c) + noise * draw.normal(size=(n, d)) - 5


@pytest.mark.parametrize("c", [1, 4, 15, 30])
def test_trusted_residuals_are_those_of_refitting_without_the_row(c):
    given, columns = drawn(16, c, 3)
    ridge = Ridge.fit(given, columns)
    scaled = (given - given.mean(0)) / given.std(0)
    squares = np.linalg.svd(scaled, compute_uv=False) ** 2
    penalties = GRID * np.mean(squares)
    used = np.array([1 + (squares / (squares + penalty)).sum() for penalty in penalties]) / 16
    allowed = penalties[used <= 0.5]
    expected, alphas = conditional(given, columns, allowed)
    np.testing.assert_allclose(penalties[ridge.which], alphas)
    np.testing.assert_allclose(ridge.residuals(given, columns, np.arange(16)), expected, atol=1e-6)
    theirs = RidgeCV(allowed, alpha_per_target=True).fit(scaled, columns)
    np.testing.assert_allclose(ridge.weights, theirs.coef_.T, atol=1e-6 * np.abs(theirs.coef_).max())


@pytest.mark.parametrize("c", [2, 30, 45, 60, 200])
def test_trusted_and_new_residuals_are_alike_whatever_the_width_of_the_condition(c):
    given, columns = drawn(250, c, 40, seed=1)
    ridge = Ridge.fit(given[:50], columns[:50])
    old = ridge.residuals(given[:50], columns[:50], np.arange(50))
    new = ridge.residuals(given[50:], columns[50:], np.full(200, -1))
    assert 0.8 < old.std() / new.std() < 1.2


def test_a_condition_that_says_nothing_leaves_the_columns():
    draw = np.random.default_rng(0)
    columns = draw.normal(size=(60, 20))
    ridge = Ridge.fit(draw.normal(size=(60, 50)), columns)
    new, fresh = draw.normal(size=(500, 50)), draw.normal(size=(500, 20))
    assert ridge.residuals(new, fresh, np.full(500, -1)).std() < 1.15


@pytest.mark.parametrize("on", ["logits", "margin", "class", "activations", "input", OutputOnly()])
def test_every_condition(on):
    fitted = Conditional(Activations(), on).fit(MODEL, MADE.trusted)
    values = fitted(MADE.trusted).values
    np.testing.assert_allclose(values.std(0)[values.std(0) > 0.5], 1, atol=0.1)


def test_what_the_condition_says_is_gone():
    fitted = Conditional(Activations("4"), "activations").fit(MODEL, MADE.trusted)
    raw = Activations("4").fit(MODEL, MADE.trusted)(MADE.fresh).values
    left = fitted(MADE.fresh).values * fitted.ridge.spread
    assert np.abs(left).mean() < 0.1 * np.abs(raw).mean()


def test_an_unknown_class_counts_as_none():
    fitted = Conditional(Activations("1"), "class").fit(MODEL, MADE.trusted)
    part = type(fitted.condition)("class", np.array([77]), fitted.condition.mean, fitted.condition.basis)
    assert not part(MODEL, MADE.fresh, ()).any()


def test_a_wide_vocabulary_is_reduced(monkeypatch):
    monkeypatch.setattr("causalmad.signatures.conditional._WIDEST", 5)
    made = toy("gpt2", trusted=24, fresh=5)
    model = open_model(made.model)
    fitted = Conditional(Activations(), "logits").fit(model, made.trusted)
    reduced = fitted.condition(model, made.fresh, ())
    assert reduced.shape == (5, 5) and len(fitted.ridge.weights) == 5
    logits = np.stack([np.asarray(model.logits(batch))[0] for batch in model.batches(made.fresh, 1)]).astype(float)
    centred = logits - logits.mean(1, keepdims=True)  # of log-probabilities and of logits alike
    np.testing.assert_allclose(reduced, (centred - fitted.condition.mean) @ fitted.condition.basis.T, atol=1e-5)


def test_donors_are_not_regressed_on():
    inner = AttributionPatching(baseline="donors")
    fitted = Conditional(inner).fit(MODEL, MADE.trusted)
    assert set(fitted.digests) == set(MADE.trusted.digests) - set(fitted.donor_digests) and fitted.donor_digests


@pytest.mark.parametrize("on", ["logits", OutputOnly()])
def test_it_survives(tmp_path, on):
    survives(Conditional(AttributionPatching(), on), MADE, tmp_path / "a")


def test_named_errors():
    with pytest.raises(FitError, match="margins"):
        Conditional(on="margins")
    with pytest.raises(FitError):
        Conditional(on=3)
    with pytest.raises(FitError):
        Conditional("activations")
    with pytest.raises(FitError, match="distinct"):
        Conditional(Activations()).fit(MODEL, MADE.trusted[:2])
