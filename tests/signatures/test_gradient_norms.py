import numpy as np
import pytest
import torch

from causalmad import open_model
from causalmad.errors import FitError, ModelError, SiteError
from causalmad.signatures import GradientNorms
from causalmad.targets import ClassLogit, Divergence
from causalmad.testing.toys import toy
from tests.signatures.families import BLOCKS, EMBEDDINGS, HEADS, LAYERS, PROJECTIONS, WIDTH, small
from tests.twins import gradient_norms as twin
from tests.twins.attribution_patching import margin_of
from tests.twins.resampling_profile import run


def found_on(fitted, inputs, group):
    reduced = fitted.reduced(inputs)
    return reduced.values[:, [i for i, c in enumerate(reduced.columns) if c.block == f"{group} gradient by place"]]


def test_blocks_equal_the_twin():
    made, model = small("mlp")
    found = found_on(GradientNorms().fit(open_model(made.model), made.trusted), made.fresh, "blocks")
    units = [lambda g, a=start, b=stop: g[a:b] for start, stop in made.fresh.blocks.values()]
    for row, values in zip(made.fresh.main, found):
        expected = twin.norms(model, row, "", "input", units, margin_of(int(model(row).argmax())))
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", BLOCKS)
def test_positions_heads_mlps_and_residual_equal_the_twin_on_every_family(name):
    made, model = small(name)
    units = ("positions", "heads", "mlps", "residual")
    fitted = GradientNorms(units).fit(open_model(made.model, batch_size=3), made.trusted)
    found = {group: found_on(fitted, made.fresh, group) for group in ("positions", "heads", "mlps", "residual 1")}
    heads = [lambda g, i=i: g[:, i * WIDTH : (i + 1) * WIDTH] for i in range(HEADS)]
    for index, row in enumerate(made.fresh.main):
        target = margin_of(int(run(model, row).argmax()))
        tokens = [lambda g, i=i: g[len(g) - 1 - i] for i in range(len(row))]
        for group, path in (("positions", EMBEDDINGS[name]), ("residual 1", BLOCKS[name].format(1))):
            expected = twin.norms(model, row, path, "output", tokens, target)
            np.testing.assert_allclose(found[group][index, : len(row)], expected, rtol=1e-4, atol=1e-6)
            assert not found[group][index, len(row) :].any()
        expected = [
            value
            for layer in range(LAYERS)
            for value in twin.norms(
                model, row, f"{BLOCKS[name].format(layer)}.{PROJECTIONS[name]}", "input", heads, target
            )
        ]
        np.testing.assert_allclose(found["heads"][index], expected, rtol=1e-4, atol=1e-6)
        expected = [
            twin.norms(model, row, f"{BLOCKS[name].format(layer)}.mlp", "output", [lambda g: g], target)[0]
            for layer in range(LAYERS)
        ]
        np.testing.assert_allclose(found["mlps"][index], expected, rtol=1e-4, atol=1e-6)


def test_on_a_linear_model_the_norm_is_that_of_the_weights():
    made = toy("linear")
    fitted = GradientNorms("blocks", ClassLogit(1)).fit(open_model(made.model), made.trusted)
    first, second = made.model
    weights = (second.weight[1] @ first.weight).detach()
    expected = [float(weights[start:stop].norm()) for start, stop in made.fresh.blocks.values()]
    np.testing.assert_allclose(found_on(fitted, made.fresh, "blocks"), [expected] * len(made.fresh), rtol=1e-5)


def test_columns_are_logarithms_and_what_plays_no_part_is_zero():
    made = toy("mlp")
    fitted = GradientNorms().fit(open_model(made.model), made.trusted)
    raw, values = fitted.reduced(made.fresh).values, fitted(made.fresh).values
    np.testing.assert_allclose(values, np.log1p(raw / fitted.scales.sizes), rtol=1e-5)
    idle = [column.unit for column in fitted.columns].index("idle")
    assert not values[:, idle].any() and (np.delete(values, idle, 1) > 0).all()


def test_one_forward_and_one_backward_pass(monkeypatch):
    made = toy("gpt2", 8, 5)
    fitted = GradientNorms(("heads", "mlps", "positions", "residual")).fit(open_model(made.model), made.trusted)
    fitted(made.fresh)  # the first run at these places is made whole as well
    calls = []
    handle = made.model.register_forward_hook(lambda *_: calls.append("forward"))
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append("backward") or grad(*a, **k))
    try:
        fitted(made.fresh)
    finally:
        handle.remove()
    assert calls == ["forward", "backward"]


def test_what_has_no_gradient_is_named():
    made = toy("mlp", 6, 2)
    with pytest.raises(FitError, match="no slope"):
        GradientNorms(target=Divergence())
    with pytest.raises(FitError, match="no unit 'stages'"):
        GradientNorms("stages").fit(open_model(made.model), made.trusted)
    with pytest.raises(SiteError, match="role 'heads'"):
        GradientNorms("heads").fit(open_model(made.model), made.trusted)
    with pytest.raises(ModelError, match="no class 9"):
        GradientNorms(target=ClassLogit(9)).fit(open_model(made.model), made.trusted)
