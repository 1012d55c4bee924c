"""Captum's attributions, held against captum called by hand, our own, and exact interventions."""

import copy
from dataclasses import replace

import nnsight
import numpy as np
import pytest
import torch
from captum import attr

from causalmad import Inputs, open_model
from causalmad.errors import FitError, ModelError, SiteError
from causalmad.signatures import AttributionPatching, Captum, GradientNorms, RelevancePatching
from causalmad.targets import ClassLogit, Divergence
from causalmad.testing.toys import toy
from causalmad.testing.traces import untouched
from tests.signatures.families import BLOCKS, EMBEDDINGS, HEADS, LAYERS, PROJECTIONS, WIDTH, small
from tests.twins.attribution_patching import margin_of

PLAIN = {"log": False}


def table(fitted, inputs, group, kind="sum"):
    reduced = fitted.reduced(inputs)
    return reduced.values[:, [i for i, c in enumerate(reduced.columns) if c.block == f"{group} {kind} by place"]]


def fitted_on(made, *args, engine="hooks", **options):
    return Captum(*args, **{**PLAIN, **options}).fit(
        open_model(made.model, engine=engine, batch_size=5), made.trusted, 3
    )


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
@pytest.mark.parametrize(
    ("name", "units"), [("mlp", "blocks"), ("gpt2", ("heads", "mlps", "positions")), ("conv", "positions")]
)
def test_gradient_times_activation_is_attribution_patching_to_zero(name, units, engine):
    made = toy(name, 12, 6)
    ours = AttributionPatching(units, baseline="zero", normalise=False, log=False)
    expected = ours.fit(open_model(made.model), made.trusted).reduced(made.fresh)
    found = fitted_on(made, "LayerGradientXActivation", units, engine=engine).reduced(made.fresh)
    assert sorted(c.name for c in found.columns) == sorted(c.name for c in expected.columns)
    order = [[c.name for c in found.columns].index(column.name) for column in expected.columns]
    np.testing.assert_allclose(found.values[:, order], expected.values, atol=1e-5)


@pytest.mark.parametrize("baseline", ["zero", "mean", "donors", "positions", "components"])
@pytest.mark.parametrize(("name", "units"), [("mlp", "blocks"), ("gpt2", ("heads", "positions"))])
def test_integrated_gradients_are_our_own_steps(name, units, baseline):
    made = toy(name, 12, 6)
    ours = AttributionPatching(units, baseline=baseline, steps=3, donors=2, normalise=False, log=False)
    expected = ours.fit(open_model(made.model), made.trusted, 3).reduced(made.fresh)
    found = fitted_on(made, units=units, baseline=baseline, steps=3, donors=2).reduced(made.fresh)
    order = [[c.name for c in found.columns].index(column.name) for column in expected.columns]
    np.testing.assert_allclose(found.values[:, order], expected.values, atol=2e-5)


@pytest.mark.parametrize("name", BLOCKS)
def test_integrated_gradients_of_heads_and_tokens_equal_captums_own_layer_method(name):
    made, model = small(name)
    fitted = fitted_on(made, units=("heads", "positions"), baseline="donors", donors=1, steps=6, target=ClassLogit(4))
    donor = fitted.baseline.donors.inputs.main[0]
    row = torch.randint(1, 20, (len(donor),), generator=torch.Generator().manual_seed(8))

    def by_hand(path, at_input):
        layer = attr.LayerIntegratedGradients(
            lambda ids: model(input_ids=ids).logits[:, -1, 4], model.get_submodule(path)
        )
        options = {"n_steps": 6, "method": "riemann_middle", "attribute_to_layer_input": at_input}
        result = layer.attribute(row[None], baselines=donor[None], **options)
        return (result[0] if isinstance(result, tuple) else result)[0].detach()

    inputs = Inputs.of({"input_ids": row[None]})
    heads = torch.cat([by_hand(f"{BLOCKS[name].format(i)}.{PROJECTIONS[name]}", True) for i in range(LAYERS)], -1)
    expected = heads.reshape(len(row), LAYERS * HEADS, WIDTH).sum((0, 2))
    np.testing.assert_allclose(table(fitted, inputs, "heads")[0], expected, atol=1e-5)
    tokens = by_hand(EMBEDDINGS[name], False).sum(-1).flip(0)
    np.testing.assert_allclose(table(fitted, inputs, "positions")[0, : len(row)], tokens, atol=1e-5)


@pytest.mark.parametrize("method", ["LayerConductance", "InternalInfluence", "LayerDeepLift"])
@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_layer_methods_equal_captum_by_hand_one_input_at_a_time(method, baseline):
    made, model = small("mlp")
    options = {"n_steps": 5, "method": "riemann_middle"} if method != "LayerDeepLift" else {}
    fitted = fitted_on(made, method, sites=("1", "4", "3:input"), baseline=baseline, steps=5, target=ClassLogit(2))
    base = torch.zeros(1, 12) if baseline == "zero" else made.trusted.main.mean(0, keepdim=True)
    for index, row in enumerate(made.fresh.main):
        expected = []
        for path, at_input in (("1", False), ("4", False), ("3", True)):
            own = copy.deepcopy(model)
            layer = getattr(attr, method)(own, own.get_submodule(path))
            point = row[None].clone().requires_grad_(True)
            entries = layer.attribute(point, base, target=2, attribute_to_layer_input=at_input, **options)
            entries = entries[0] if isinstance(entries, tuple) else entries
            expected.append(entries.sum().item())
        names = [column.unit for column in fitted.columns if " sum " in column.name]
        found = dict(zip(names, table(fitted, made.fresh, "sites")[index]))
        np.testing.assert_allclose([found["1"], found["4"], found["3:input"]], expected, atol=1e-5)


def answer(made):
    """The target (the margin of the clean answer) of rows, moved or not."""
    model = copy.deepcopy(made.model).eval()
    return lambda row, moved: margin_of(int(model(row).argmax()))(model(moved)).item()


def moved(row, base, blocks, chosen):
    out = row.clone()
    for name in chosen:
        start, stop = blocks[name]
        out[start:stop] = base[start:stop]
    return out


def test_ablation_and_shapley_values_are_exact_interventions():
    """Of one block by itself; and for Shapley values, averaged over orders, each order adding up to the whole."""
    made = toy("mlp", 12, 5)
    read, blocks, base = answer(made), made.fresh.blocks, made.trusted.main.mean(0)
    alone = table(fitted_on(made, "FeatureAblation", "blocks", baseline="mean"), made.fresh, "blocks")
    shapley = fitted_on(made, "ShapleyValueSampling", "blocks", baseline="mean", samples=4)
    draw = np.random.default_rng([3, 3])
    orders = [[list(blocks)[i] for i in draw.permutation(len(blocks) + 1) if i < len(blocks)] for _ in range(4)]
    assert len({tuple(order) for order in orders}) > 1
    sampled = table(shapley, made.fresh, "blocks")
    assert not any(" size " in column.name for column in shapley.columns)
    for index, row in enumerate(made.fresh.main):
        expected = [read(row, row) - read(row, moved(row, base, blocks, [name])) for name in blocks]
        np.testing.assert_allclose(alone[index], expected, atol=1e-5)
        exact = dict.fromkeys(blocks, 0.0)
        for order in orders:
            for place, name in enumerate(order):
                kept = set(order[:place])
                before = moved(row, base, blocks, set(blocks) - kept)
                after = moved(row, base, blocks, set(blocks) - kept - {name})
                exact[name] += (read(row, after) - read(row, before)) / len(orders)
        np.testing.assert_allclose(sampled[index], list(exact.values()), atol=1e-5)
        whole = read(row, row) - read(row, moved(row, base, blocks, blocks))
        np.testing.assert_allclose(sampled[index].sum(), whole, atol=1e-5)


@pytest.mark.parametrize("baseline", ["mean", "donors"])
def test_ablation_of_heads_and_tokens_is_an_exact_intervention(baseline):
    made, model = small("gpt2")
    fitted = fitted_on(
        made, "FeatureAblation", ("heads", "positions"), baseline=baseline, donors=1, target=ClassLogit(4)
    )
    opened = open_model(model)
    heads, tokens = table(fitted, made.fresh, "heads"), table(fitted, made.fresh, "positions")
    for index in range(len(made.fresh)):
        (batch,) = opened.batches(made.fresh[index])
        which = None if baseline == "mean" else torch.zeros(1, 1, dtype=torch.long)
        clean = float(opened.logits(batch)[0, 4])
        for number, site in enumerate(opened.sites("heads")):

            def edit(value, site=site):
                new = fitted.baseline.each(site.place, value, batch, which)[0]  # noqa: B023
                return site.put(value, site.take(new, batch), batch)  # noqa: B023

            expected = clean - float(opened.logits(batch, {site.place: edit})[0, 4])
            np.testing.assert_allclose(heads[index, number], expected, atol=1e-5)
        place = opened.sites("embedding")[0].place
        length = len(made.fresh.main[index])
        for number in range(length):

            def edit(value, number=number):
                new = fitted.baseline.each(place, value, batch, which)[0]  # noqa: B023
                out = value.clone()
                out[0, length - 1 - number] = new[0, length - 1 - number]  # noqa: B023
                return out

            expected = clean - float(opened.logits(batch, {place: edit})[0, 4])
            np.testing.assert_allclose(tokens[index, number], expected, atol=1e-5)


def test_random_orders_depend_on_the_seed_alone():
    made = toy("gpt2", 12, 6)
    spec = Captum("ShapleyValueSampling", "positions", samples=2, baseline="mean", log=False)
    opened = open_model(made.model)
    fitted = spec.fit(opened, made.trusted, seed=4)
    whole = fitted(made.fresh).values
    torch.manual_seed(99)
    for index in range(len(made.fresh)):  # alone, without longer rows beside it
        np.testing.assert_allclose(fitted(made.fresh[index]).values[0], whole[index], atol=1e-5)
    assert np.abs(spec.fit(opened, made.trusted, seed=5)(made.fresh).values - whole).max() > 1e-3


@pytest.mark.parametrize("method", ["LayerDeepLift", "LayerConductance"])
def test_hooks_of_captum_never_touch_the_users_model(method):
    made = toy("mlp", 8, 4)
    fitted = fitted_on(made, method, sites=("1", "4"))
    with untouched(made.model, "after captum"):
        fitted(made.fresh)
    assert not any(hasattr(part, "input") or hasattr(part, "input_ref") for part in made.model.modules())
    # A module that captum cannot take is named, and nothing stays on the model then either.
    shared = torch.nn.Sequential(torch.nn.Linear(12, 12), act := torch.nn.Tanh(), torch.nn.Linear(12, 3), act)
    if method == "LayerDeepLift":
        with untouched(shared, "after captum failed"), pytest.raises(ModelError, match="captum's LayerDeepLift"):
            Captum(method, sites="0").fit(open_model(shared), made.trusted)


def test_layer_methods_run_the_plain_module_of_a_users_wrapper():
    made = toy("mlp", 8, 4)
    spec = Captum("LayerConductance", sites=("1", "4"), steps=3)
    expected = spec.fit(open_model(made.model), made.trusted)(made.fresh).values
    wrapper = nnsight.NNsight(copy.deepcopy(made.model))
    with untouched(wrapper._module, "after captum"):
        found = spec.fit(open_model(wrapper), made.trusted)(made.fresh).values
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "spec", [RelevancePatching(), GradientNorms(), Captum(steps=2)], ids=lambda spec: type(spec).__name__
)
def test_a_classifier_of_sequences_row_by_row(spec):
    made = toy("bert", 8, 5)
    fitted = spec.fit(open_model(made.model), made.trusted)
    again = spec.restore(open_model(made.model, batch_size=1), fitted.state())
    np.testing.assert_allclose(again(made.fresh).values, fitted(made.fresh).values, atol=1e-4)


def test_what_cannot_be_is_named():
    with pytest.raises(FitError, match="no method 'LayerIntegratedGradient'") as caught:
        Captum("LayerIntegratedGradient")
    assert caught.value.tries[0] == "'LayerIntegratedGradients'" and len(caught.value.tries) == 3
    for options in (
        {"baseline": "median"},
        {"steps": 0},
        {"samples": 0},
        {"donors": 0},
        {"sites": "1", "units": "heads"},
    ):
        with pytest.raises(FitError):
            Captum(**options)
    with pytest.raises(FitError, match="compares with zero"):
        Captum("LayerGradientXActivation", baseline="mean")
    with pytest.raises(FitError, match="no slope"):
        Captum("LayerGradientXActivation", target=Divergence())
    tokens, vectors = toy("gpt2", 6, 1), toy("mlp", 6, 1)
    with pytest.raises(FitError, match="none between tokens"):
        Captum("LayerConductance", "heads").fit(open_model(tokens.model), tokens.trusted)
    with pytest.raises(FitError, match="not to parts of its input"):
        Captum("InternalInfluence", "blocks").fit(open_model(vectors.model), vectors.trusted)
    fitted = Captum("LayerConductance", sites="1").fit(open_model(vectors.model), vectors.trusted)
    edited = replace(fitted, model=replace(fitted.model, standing=lambda batch: {}))
    with pytest.raises(ModelError, match="on which edits cannot stand"):
        edited(vectors.fresh)
    with pytest.raises(FitError, match="a run for every neuron"):
        Captum("FeatureAblation", "neurons").fit(open_model(tokens.model), tokens.trusted)
    with pytest.raises(SiteError, match="added up over the tokens"):
        Captum(sites="transformer.h.0@-1").fit(open_model(tokens.model), tokens.trusted)
