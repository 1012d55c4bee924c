import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, LayerIntegratedGradients

from causalmad import Inputs, open_model
from causalmad.errors import FitError, ModelError, SiteError
from causalmad.signatures import AttributionPatching
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


def test_odd_options_and_units_are_named():
    toy, _ = small("mlp")
    for options in ({"baseline": "median"}, {"steps": 0}, {"donors": 0}):
        with pytest.raises(FitError):
            AttributionPatching(**options)
    with pytest.raises(FitError, match="no unit 'layers'"):
        fitted_on(toy, units=("blocks", "layers"))
    with pytest.raises(FitError, match="no units at all"):
        fitted_on(toy, units=())
    with pytest.raises(SiteError, match="role 'heads'"):
        fitted_on(toy, units="heads")
    with pytest.raises(ModelError, match="no class 9"):
        fitted_on(toy, target=ClassLogit(9))
    with pytest.raises(ModelError, match="one number per input"):
        fitted_on(toy, target=lambda logits: logits.sum())
