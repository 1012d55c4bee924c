import numpy as np
import pytest
import torch

from causalmad import Inputs, open_model
from causalmad.errors import FitError
from causalmad.signatures import AttributionPatching, ResamplingProfile
from causalmad.targets import ClassLogit
from tests.signatures.families import BLOCKS, HEADS, LAYERS, WIDTH, head_places, small
from tests.twins import resampling_profile as twin

STATISTICS = ("kl", "kl sd", "margin", "margin sd")


def fitted_on(toy, **options):
    return ResamplingProfile(**{"donors": 2, **options}).fit(open_model(toy.model, batch_size=5), toy.trusted, seed=3)


def twin_donors(fitted, row):
    return twin.own_donors(row, list(fitted.donors.inputs.main), fitted.donors.count)


def table(fitted, inputs, group, statistic, kind=None):
    """(n, columns) of one block of columns, in its own units."""
    reduced = fitted.reduced(inputs)
    wanted = f"{group} {statistic} by {kind}" if kind else f"{group} {statistic}"
    return reduced.values[:, [i for i, column in enumerate(reduced.columns) if column.block == wanted]]


def require_same(fitted, inputs, group, effects, width=None, top=3):
    """Both forms of the columns against effects (n, units, statistics) of the twin."""
    for index, statistic in enumerate(STATISTICS):
        single = [[unit[index] for unit in row] for row in effects]
        if statistic.endswith(" sd"):
            sums = [[sum(row)] for row in single]
            np.testing.assert_allclose(table(fitted, inputs, group, statistic), sums, atol=1e-5, rtol=1e-5)
            continue
        ranked = [twin.ranked(row, top) for row in single]
        placed = [twin.placed(row, width) for row in single] if width else single
        np.testing.assert_allclose(table(fitted, inputs, group, statistic, "rank"), ranked, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(table(fitted, inputs, group, statistic, "place"), placed, atol=1e-5, rtol=1e-5)


def mixed(toy):
    """Fresh inputs and some trusted ones, among them donors."""
    rows = (
        [*toy.fresh.main, *toy.trusted.main[:6]] if toy.fresh.tokens else torch.cat([toy.fresh.main, toy.trusted.main])
    )
    return Inputs.of({"input_ids": rows}) if toy.fresh.tokens else Inputs.of(rows, blocks=toy.fresh.blocks)


def test_blocks_equal_the_twin_also_where_an_input_is_a_donor():
    toy, model = small("mlp")
    fitted, inputs = fitted_on(toy, donors=3), mixed(toy)
    assert sum(key in fitted.donor_digests for key in inputs.digests) == 4
    masks = [inputs.block_mask(name) for name in inputs.blocks]
    effects = [twin.input_units(model, row, twin_donors(fitted, row), masks) for row in inputs.main]
    require_same(fitted, inputs, "blocks", effects)


@pytest.mark.parametrize("name", BLOCKS)
def test_tokens_and_heads_equal_the_twin_on_every_family(name):
    toy, model = small(name)
    fitted, inputs = fitted_on(toy), mixed(toy)
    assert set(fitted.donor_digests) & set(inputs.digests)
    assert len(set(inputs.lengths)) > 2 and len({len(row) for row in fitted.donors.inputs.main}) > 1
    tokens, heads = [], []
    for row in inputs.main:
        donors, everywhere = twin_donors(fitted, row), range(len(row))
        tokens.append(twin.token_units(model, row, donors))
        places = list(head_places(name))
        heads.append([twin.site_unit(model, row, donors, path, "input", part, everywhere) for path, part in places])
    require_same(fitted, inputs, "positions", tokens, width=int(toy.trusted.lengths.max()))
    require_same(fitted, inputs, "heads", heads)


def test_residual_positions_and_mlps_equal_the_twin():
    toy, model = small("gpt2", fresh=3)
    fitted, inputs = fitted_on(toy, units=("residual", "mlps")), toy.fresh
    whole = slice(0, HEADS * WIDTH)
    for layer in range(LAYERS):
        path = BLOCKS["gpt2"].format(layer)
        effects = [
            [
                twin.site_unit(model, row, twin_donors(fitted, row), path, "output", whole, [position])
                for position in reversed(range(len(row)))
            ]
            for row in inputs.main
        ]
        require_same(fitted, inputs, f"residual {layer}", effects, width=int(toy.trusted.lengths.max()))
    effects = [
        [
            twin.site_unit(
                model,
                row,
                twin_donors(fitted, row),
                f"{BLOCKS['gpt2'].format(layer)}.mlp",
                "output",
                whole,
                range(len(row)),
            )
            for layer in range(LAYERS)
        ]
        for row in inputs.main
    ]
    require_same(fitted, inputs, "mlps", effects)


def test_columns_are_signed_logarithms_in_units_of_the_trusted_median():
    toy, _ = small("mlp", trusted=20)
    fitted = fitted_on(toy)
    own = set(fitted.donor_digests)
    others = toy.trusted[[row for row, key in enumerate(toy.trusted.digests) if key not in own]]
    usual, raw = fitted.reduced(others).values, fitted.reduced(toy.fresh).values
    units = [twin.scale(column) for column in usual.T]
    expected = [[twin.signed_log(value, unit) for value, unit in zip(row, units)] for row in raw]
    np.testing.assert_allclose(fitted(toy.fresh).values, expected, atol=1e-5)


def test_a_unit_without_effect_is_zero_to_the_last_bit():
    toy, _ = small("mlp")
    fitted = fitted_on(toy)
    idle = [i for i, column in enumerate(fitted.columns) if column.unit == "idle"]
    for size in (1, 3, 64):
        again = ResamplingProfile(donors=2).restore(open_model(toy.model, batch_size=size), fitted.state())
        assert len(idle) == 2 and not again(toy.fresh).values[:, idle].any()


def test_positions_beyond_the_longest_trusted_input_are_added_up():
    toy, model = small("gpt2")
    longest = int(toy.trusted.lengths.max())
    row = torch.randint(1, 20, (longest + 4,), generator=torch.Generator().manual_seed(5))
    inputs = Inputs.of({"input_ids": [row, *toy.fresh.main]})
    fitted = fitted_on(toy, units="positions")
    effects = [twin.token_units(model, row, twin_donors(fitted, row)) for row in inputs.main]
    require_same(fitted, inputs, "positions", effects, width=longest)
    beyond = [i for i, column in enumerate(fitted.columns) if column.position == "beyond"]
    values = fitted(inputs).values[:, beyond]
    assert len(beyond) == 2 and values[0].all() and not values[1:].any()


def test_blocks_of_tokens_are_counted_from_the_first_real_token():
    toy, model = small("gpt2")
    rows = [row[:3] if i % 2 else row for i, row in enumerate(toy.trusted.main)]
    spans = {"first": (0, 1), "second": (1, 3)}
    trusted = Inputs.of({"input_ids": rows}, blocks=spans)
    fitted = ResamplingProfile(units="blocks", donors=2).fit(open_model(model), trusted)
    effects = []
    for row in trusted.main:
        units = []
        for start, stop in spans.values():
            runs = []
            for donor in twin_donors(fitted, row):
                changed = row.clone()
                for position in range(start, stop):
                    changed[position] = donor[twin.same_place(position, len(row), len(donor))]
                runs.append(twin.run(model, changed))
            units.append(twin.effects_of(model, row, runs))
        effects.append(units)
    require_same(fitted, trusted, "blocks", effects)


def test_on_a_linear_model_it_is_minus_the_attribution():
    toy, _ = small("linear")
    options = {"units": "blocks", "target": ClassLogit(1), "donors": 3}
    exact = fitted_on(toy, **options, by="place")
    first_order = AttributionPatching(**options, baseline="donors", normalise=False).fit(
        open_model(toy.model), toy.trusted, seed=3
    )
    change = table(exact, toy.fresh, "blocks", "margin", "place")
    signed = first_order.reduced(toy.fresh).values[:, :3]
    np.testing.assert_allclose(change, -signed, atol=1e-5)


def test_too_few_trusted_inputs_and_odd_options_are_named():
    toy, _ = small("mlp", trusted=4)
    with pytest.raises(FitError, match="distinct trusted inputs for 4 donors and a spare"):
        ResamplingProfile(donors=4).fit(open_model(toy.model), toy.trusted)
    with pytest.raises(FitError, match="every trusted input is a donor"):
        ResamplingProfile(donors=3).fit(open_model(toy.model), toy.trusted)
    for options in ({"by": "size"}, {"donors": 0}, {"top": 0}):
        with pytest.raises(FitError):
            ResamplingProfile(**options)
    with pytest.raises(FitError, match="declare no blocks"):
        ResamplingProfile(units="blocks").fit(open_model(toy.model), Inputs.of(torch.randn(9, 12)))
