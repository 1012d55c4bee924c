from dataclasses import replace

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, LayerIntegratedGradients

from causalmad import Inputs, open_model
from causalmad.errors import FitError, ModelError, SiteError
from causalmad.signatures import AtpStar, AttributionPatching, Captum, ResamplingProfile
from causalmad.sites import Place
from causalmad.targets import ClassLogit, TopMargin
from tests.signatures.families import BLOCKS, EMBEDDINGS, HEADS, LAYERS, PROJECTIONS, WIDTH, head_places, small
from tests.twins import attribution_patching as twin
from tests.twins.resampling_profile import own_donors, run, same_place

BASELINES = ("zero", "mean", "donors")


def fitted_on(toy, **options):
    spec = AttributionPatching(**{"donors": 2, "log": False, "normalise": False, **options})
    return spec.fit(open_model(toy.model, batch_size=5), toy.trusted, seed=3)


def table(fitted, inputs, group, kind):
    reduced = fitted.reduced(inputs)
    wanted = [i for i, column in enumerate(reduced.columns) if column.block == f"{group} {kind} by place"]
    return reduced.values[:, wanted]


def twin_contributions(fitted, toy, model, row, path, side):
    """Contributions of one place by the twin, with the baseline and the donors of the fitted signature."""
    target = twin.margin_of(int(run(model, row).argmax()))
    spec = fitted.spec
    if spec.baseline == "donors":
        donors = fitted.baseline.donors
        chosen = own_donors(row, list(donors.inputs.main), donors.count)
        baselines = [twin.donor_baseline(model, row, donor, path, side) for donor in chosen]
    elif spec.baseline == "mean":
        baselines = [twin.mean_baseline(model, list(toy.trusted.main), path, side)]
    else:
        baselines = [torch.zeros(())]
    return twin.contributions(model, row, path, side, baselines, target, spec.steps)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("baseline", BASELINES)
def test_blocks_equal_the_twin(baseline, steps):
    toy, model = small("mlp")
    fitted = fitted_on(toy, baseline=baseline, steps=steps)
    inputs = Inputs.of(torch.cat([toy.fresh.main, toy.trusted.main]), blocks=toy.fresh.blocks)
    found = [twin_contributions(fitted, toy, model, row, "", "input") for row in inputs.main]
    spans = inputs.blocks.values()
    signed = [[float(row[start:stop].sum()) for start, stop in spans] for row in found]
    size = [[float(row[start:stop].abs().sum()) for start, stop in spans] for row in found]
    np.testing.assert_allclose(table(fitted, inputs, "blocks", "sum"), signed, atol=1e-5)
    np.testing.assert_allclose(table(fitted, inputs, "blocks", "size"), size, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "baseline", "steps"),
    [
        *((name, baseline, 1) for name in BLOCKS for baseline in BASELINES),
        ("gpt2", "donors", 2),
        ("llama", "mean", 2),
        ("neox", "zero", 2),
    ],
)
def test_tokens_heads_mlps_and_residual_equal_the_twin_on_every_family(name, baseline, steps):
    toy, model = small(name)
    fitted = fitted_on(toy, baseline=baseline, steps=steps, units=("heads", "mlps", "positions", "residual"))
    own = toy.trusted if fitted.baseline.donors is None else fitted.baseline.donors.inputs
    inputs = Inputs.of({"input_ids": [*toy.fresh.main[:2], *own.main[:2]]})
    longest = int(toy.trusted.lengths.max())

    def by_position(values):
        units = [float(token.sum()) for token in values.flip(0)]
        return [*(units + [0.0] * longest)[:longest], sum(units[longest:])]

    for group, path in [
        ("positions", EMBEDDINGS[name]),
        *((f"residual {i}", BLOCKS[name].format(i)) for i in range(LAYERS)),
    ]:
        rows = [twin_contributions(fitted, toy, model, row, path, "output") for row in inputs.main]
        expected = [by_position(row) for row in rows]
        np.testing.assert_allclose(table(fitted, inputs, group, "sum"), expected, atol=1e-5, err_msg=group)
        expected = [row.abs().flip(0).sum(1) for row in rows]
        for got, wanted in zip(table(fitted, inputs, group, "size"), expected):
            np.testing.assert_allclose(got[: len(wanted)][:longest], wanted[:longest], atol=1e-5, err_msg=group)
    for index, (path, part) in enumerate(head_places(name)):
        rows = [twin_contributions(fitted, toy, model, row, path, "input")[:, part] for row in inputs.main]
        np.testing.assert_allclose(
            table(fitted, inputs, "heads", "sum")[:, index], [float(row.sum()) for row in rows], atol=1e-5
        )
        np.testing.assert_allclose(
            table(fitted, inputs, "heads", "size")[:, index], [float(row.abs().sum()) for row in rows], atol=1e-5
        )
    for layer in range(LAYERS):
        rows = [
            twin_contributions(fitted, toy, model, row, f"{BLOCKS[name].format(layer)}.mlp", "output")
            for row in inputs.main
        ]
        np.testing.assert_allclose(
            table(fitted, inputs, "mlps", "sum")[:, layer], [float(row.sum()) for row in rows], atol=1e-5
        )


def test_neurons_equal_the_twin():
    toy, model = small("gpt2")
    fitted = fitted_on(toy, units="neurons")
    for layer in range(LAYERS):
        path = f"transformer.h.{layer}.mlp.c_proj"
        expected = [twin_contributions(fitted, toy, model, row, path, "input").sum(0) for row in toy.fresh.main]
        found = table(fitted, toy.fresh, f"neurons {path}", "sum")
        np.testing.assert_allclose(found, torch.stack(expected), atol=1e-5)


def test_integrated_gradients_of_blocks_equal_captums():
    toy, model = small("mlp")
    top = model(toy.fresh.main).argmax(-1)

    def target(x, classes):
        return TopMargin().bind(torch.nn.functional.one_hot(classes, 3).float())(model(x))

    captum = IntegratedGradients(target)
    for steps in (2, 8):
        fitted = fitted_on(toy, baseline="zero", steps=steps)
        expected = captum.attribute(
            toy.fresh.main, additional_forward_args=(top,), n_steps=steps, method="riemann_middle"
        )
        sums = [expected[:, start:stop].sum(1) for start, stop in toy.fresh.blocks.values()]
        np.testing.assert_allclose(table(fitted, toy.fresh, "blocks", "sum"), torch.stack(sums, 1), atol=1e-5)


@pytest.mark.parametrize("name", BLOCKS)
def test_integrated_gradients_of_heads_and_tokens_equal_captums(name):
    toy, model = small(name)
    fitted = fitted_on(toy, baseline="donors", donors=1, steps=6, units=("heads", "positions"), target=ClassLogit(4))
    donor = fitted.baseline.donors.inputs.main[0]
    row = torch.randint(1, 20, (len(donor),), generator=torch.Generator().manual_seed(8))
    found = Inputs.of({"input_ids": row[None]})

    def logit(ids):
        return model(input_ids=ids).logits[:, -1, 4]

    def captum(path, at_input):
        layer = LayerIntegratedGradients(logit, model.get_submodule(path))
        options = {"n_steps": 6, "method": "riemann_middle", "attribute_to_layer_input": at_input}
        result = layer.attribute(row[None], baselines=donor[None], **options)
        return (result[0] if isinstance(result, tuple) else result)[0].detach()

    heads = torch.cat([captum(f"{BLOCKS[name].format(i)}.{PROJECTIONS[name]}", True) for i in range(LAYERS)], dim=-1)
    expected = heads.reshape(len(row), LAYERS * HEADS, WIDTH).sum((0, 2))
    np.testing.assert_allclose(table(fitted, found, "heads", "sum")[0], expected, atol=1e-5)
    tokens = captum(EMBEDDINGS[name], False).sum(-1).flip(0)
    np.testing.assert_allclose(table(fitted, found, "positions", "sum")[0, : len(row)], tokens, atol=1e-5)


@pytest.mark.parametrize(("name", "steps"), [*((name, 1) for name in BLOCKS), ("gpt2", 2)])
@pytest.mark.parametrize("baseline", ["positions", "components"])
def test_means_by_position_and_components_equal_the_twin_on_every_family(baseline, steps, name):
    toy, model = small(name)
    rows = sorted(toy.trusted.main, key=len)[:6]  # so that a longer input has positions without a mean of their own
    trusted, inputs = (
        Inputs.of({"input_ids": rows}),
        Inputs.of({"input_ids": [toy.fresh.main[0], torch.arange(1, 10)]}),
    )
    assert max(map(len, rows)) < 9
    spec = AttributionPatching(
        ("heads", "positions", "mlps"), baseline=baseline, components=2, steps=steps, normalise=False, log=False
    )
    fitted = spec.fit(open_model(toy.model, batch_size=2), trusted)

    def contributions(row, path, side, parts):
        if baseline == "positions":
            base = twin.position_baseline(model, row, rows, path, side)
        else:
            base = twin.components_baseline(model, row, rows, path, side, 2, parts)
        target = twin.margin_of(int(run(model, row).argmax()))
        return twin.contributions(model, row, path, side, [base], target, steps)

    heads = [slice(head * WIDTH, (head + 1) * WIDTH) for head in range(HEADS)]
    for index, row in enumerate(inputs.main):
        found = contributions(row, EMBEDDINGS[name], "output", [slice(None)]).flip(0).sum(1)
        longest = max(map(len, rows))
        expected = [*found[:longest], *[0.0] * (longest - len(found)), float(found[longest:].sum())]
        np.testing.assert_allclose(table(fitted, inputs, "positions", "sum")[index], expected, atol=2e-5)
        for layer in range(LAYERS):
            path = f"{BLOCKS[name].format(layer)}.{PROJECTIONS[name]}"
            found = contributions(row, path, "input", heads)
            expected = [float(found[:, part].sum()) for part in heads]
            got = table(fitted, inputs, "heads", "sum")[index, layer * HEADS : (layer + 1) * HEADS]
            np.testing.assert_allclose(got, expected, atol=2e-5)
            found = contributions(row, f"{BLOCKS[name].format(layer)}.mlp", "output", [slice(None)])
            got = table(fitted, inputs, "mlps", "sum")[index, layer]
            np.testing.assert_allclose(got, float(found.sum()), atol=2e-5)


def test_components_of_vectors_start_from_the_clean_input_and_are_exact_on_a_linear_model():
    toy, model = small("linear", trusted=30)
    rows, spans = list(toy.trusted.main), list(toy.fresh.blocks.values())
    fitted = fitted_on(toy, units="blocks", baseline="components", components=3, target=ClassLogit(1))
    for index, row in enumerate(toy.fresh.main):
        base = twin.components_baseline(model, row, rows, "", "input", 3, [slice(None)])
        expected = []
        for start, stop in spans:
            moved = row.clone()
            moved[start:stop] = base[start:stop]
            expected.append((model(row)[1] - model(moved)[1]).item())
        np.testing.assert_allclose(table(fitted, toy.fresh, "blocks", "sum")[index], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "conv", "gpt2"])
def test_all_components_are_the_mean_and_none_move_nothing(name):
    toy, _ = small(name, trusted=100)
    units = "positions" if name == "conv" else ("blocks" if name == "mlp" else ("heads", "mlps"))
    everything = fitted_on(toy, units=units, baseline="components", components=64).reduced(toy.fresh).values
    mean = fitted_on(toy, units=units, baseline="mean").reduced(toy.fresh).values
    np.testing.assert_allclose(everything, mean, atol=1e-4 * np.abs(mean).max())
    equal = toy.trusted[[0]]
    spec = AttributionPatching("mlps" if name == "gpt2" else units, baseline="components", normalise=False, log=False)
    alone = spec.fit(open_model(toy.model), equal if name != "gpt2" else Inputs.of({"input_ids": [torch.tensor([3])]}))
    assert not alone.reduced(toy.fresh).values.any()


def test_means_by_position_of_inputs_that_are_no_tokens_are_the_means():
    toy, _ = small("conv")
    found = [
        fitted_on(toy, units="positions", baseline=name).reduced(toy.fresh).values for name in ("positions", "mean")
    ]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("baseline", ["mean", "zero", "components"])
@pytest.mark.parametrize(
    ("name", "group", "path", "side", "units"),
    [
        ("mlp", "blocks", "", "input", None),
        ("conv", "positions", "", "input", None),
        ("gpt2", "positions", "transformer.wte", "output", None),
        ("llama", "mlps", "model.layers.0.mlp", "output", 1),
        ("neox", "heads", "gpt_neox.layers.0.attention.dense", "input", HEADS),
    ],
)
def test_integrated_gradients_are_complete_on_inputs_and_on_activations(name, group, path, side, units, baseline):
    """Their sum is what moving the whole place to the baseline does."""
    toy, model = small(name, trusted=5)
    row, place = toy.fresh[0], Place(path, side)
    fitted = fitted_on(toy, units=group, baseline=baseline, steps=48, components=4, target=ClassLogit(2))
    opened = open_model(model)
    (batch,) = opened.batches(row)
    clean = opened.run(batch, read=[place])
    (base,) = fitted.baseline.each(place, clean.values[place], batch, None)
    difference = float(clean.logits[0, 2] - opened.logits(batch, {place: lambda _: base})[0, 2])
    found = table(fitted, row, group, "sum")[0]
    miss = abs(found[:units].sum() - difference)
    assert abs(difference) > 5e-3 and miss < 0.02 * abs(difference) + 1e-3


@pytest.mark.parametrize("group", ["heads", "positions"])
def test_the_contributions_of_a_place_sum_to_what_moving_it_does(group):
    """Completeness: nearer with more steps."""
    toy, model = small("gpt2")
    row = toy.fresh.main[0]
    misses = []
    for steps in (1, 4, 64):
        fitted = fitted_on(toy, baseline="donors", donors=1, steps=steps, units=group, target=ClassLogit(4))
        donor = fitted.baseline.donors.inputs.main[0]
        path, side = ("transformer.h.1.attn.c_proj", "input") if group == "heads" else ("transformer.wte", "output")
        moved = twin.donor_baseline(model, row, donor, path, side)
        patched = run(model, row, [(path, side, lambda _, moved=moved: moved[None])])
        difference = float(run(model, row)[4] - patched[4])
        sums = table(fitted, Inputs.of({"input_ids": row[None]}), group, "sum")[0]
        misses.append(abs(sums[-HEADS:].sum() - difference if group == "heads" else sums.sum() - difference))
    assert misses[2] < 1e-4 and misses[2] <= misses[1] <= misses[0]


def test_shares_sum_to_one_and_the_norm_is_a_column_of_its_own():
    toy, _ = small("gpt2")
    plain, shares = fitted_on(toy), fitted_on(toy, normalise=True)
    size = [i for i, column in enumerate(shares.columns) if " size " in column.name]
    values = shares.reduced(toy.fresh).values
    np.testing.assert_allclose(values[:, size].sum(1), 1, atol=1e-6)
    assert shares.columns[-1].name == "log norm" and len(shares.columns) == len(plain.columns) + 1
    total = plain.reduced(toy.fresh).values[:, size].sum(1)
    np.testing.assert_allclose(values[:, -1], np.log(total), atol=1e-6)


def test_columns_are_signed_logarithms():
    toy, _ = small("mlp")
    plain, logs = fitted_on(toy), fitted_on(toy, log=True)
    raw = plain(toy.fresh).values.astype(float)
    expected = np.sign(raw) * np.log1p(np.abs(raw) / logs.scales)
    np.testing.assert_allclose(logs(toy.fresh).values, expected, rtol=1e-5)


def test_donors_are_aligned_and_read_again_from_their_end():
    assert [same_place(position, 7, 3) for position in range(7)] == [2, 0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("kind", [AttributionPatching, AtpStar, Captum])
def test_standing_edits_do_not_reach_the_donors(kind):
    """A fitted signature that is moved to a view and one that is restored there have the same donors."""
    made, _ = small("gpt2")
    opened = open_model(made.model)
    fitted = kind(baseline="donors", donors=2).fit(opened, made.trusted)
    view = replace(opened, standing=lambda _: {opened.sites("mlps")[0].place: lambda value: 0 * value})
    moved = replace(fitted, model=view).reduced(made.fresh).values
    assert np.abs(moved - fitted.reduced(made.fresh).values).max() > 1e-3
    restored = fitted.spec.restore(view, fitted.state()).reduced(made.fresh).values
    np.testing.assert_allclose(restored, moved, atol=1e-7)


@pytest.mark.parametrize("kind", [AttributionPatching, ResamplingProfile])
def test_positions_of_the_residual_stream_name_their_site(kind):
    made, _ = small("gpt2")
    fitted = kind(units=("positions", "residual"), **({"by": "place"} if kind is ResamplingProfile else {})).fit(
        open_model(made.model), made.trusted
    )
    placed = [column for column in fitted.columns if column.position]
    for layer, site in enumerate(map(str, fitted.model.sites("residual"))):
        own = [column for column in placed if column.name.startswith(f"residual {layer} ")]
        assert {column.position for column in own} >= {"@-1", "@-2", "beyond"}
        assert {column.site for column in own} == {site}
    assert {column.site for column in placed if column.name.startswith("positions")} == {""}


def test_odd_options_and_units_are_named():
    toy, _ = small("mlp")
    for options in ({"baseline": "median"}, {"steps": 0}, {"donors": 0}, {"components": 0}):
        with pytest.raises(FitError):
            AttributionPatching(**options)
    with pytest.raises(FitError, match="no unit 'stages'"):
        fitted_on(toy, units=("blocks", "stages"))
    with pytest.raises(FitError, match="no units at all"):
        fitted_on(toy, units=())
    with pytest.raises(SiteError, match="role 'heads'"):
        fitted_on(toy, units="heads")
    with pytest.raises(ModelError, match="no class 9"):
        fitted_on(toy, target=ClassLogit(9))
    with pytest.raises(ModelError, match="one number per input"):
        fitted_on(toy, target=lambda logits: logits.sum())
