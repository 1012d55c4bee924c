"""Exact ablation equals runs with plain hooks, and pairs vanish where a model adds up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from causalmad import Inputs, open_model
from causalmad.errors import FitError
from causalmad.signatures import ExactAblation, ResamplingProfile
from causalmad.signatures.base import State
from causalmad.targets import ClassLogit
from causalmad.testing import signature_laws as laws
from causalmad.testing.toys import toy
from tests.signatures.families import BLOCKS, HEADS, WIDTH, head_places, small
from tests.twins import exact_ablation as twin
from tests.twins.resampling_profile import own_donors, site_unit


def fitted_on(made, seed=3, **options):
    return ExactAblation(**{"donors": 2, **options}).fit(open_model(made.model, batch_size=5), made.trusted, seed)


def block(fitted, inputs, name):
    """(n, columns) of one block, in its own units."""
    reduced = fitted.reduced(inputs)
    return reduced.values[:, [i for i, column in enumerate(reduced.columns) if column.block == name]]


def donors_of(fitted, row):
    return own_donors(row, list(fitted.donors.inputs.main), fitted.donors.count)


@pytest.mark.parametrize("name", BLOCKS)
def test_heads_at_single_positions_equal_the_twin(name):
    made, slow = small(name, fresh=3)
    fitted = fitted_on(made)
    rows = [*made.fresh.main, fitted.donors.inputs.main[0], torch.arange(1, fitted.longest + 4)]
    inputs = Inputs.of({"input_ids": rows})
    sites = open_model(made.model).sites("heads")
    for head, ((path, features), site) in enumerate(zip(head_places(name), sites, strict=True)):
        for index, kind in enumerate(("kl", "margin")):
            expected = []
            for row in rows:
                places = [(path, "input", features, [place]) for place in reversed(range(len(row)))]
                effects = [twin.effect(slow, row, donors_of(fitted, row), [place])[index] for place in places]
                near = effects[: fitted.longest] + [0.0] * (fitted.longest - len(effects))
                expected.append([*near, sum(effects[fitted.longest :])])
            found = block(fitted, inputs, f"heads {site} {kind} by place")
            if head >= HEADS:  # the last block, from which only the last token is read: the head as a whole
                assert found.shape[1] == 0
                np.testing.assert_allclose(np.array(expected)[:, 1:], 0, atol=1e-7)
                expected = np.array(expected)[:, :1]
                found = block(fitted, inputs, f"heads {kind} by place")[:, [head - HEADS]]
                assert np.abs(found).max() > 1e-4
            np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)


def test_whole_heads_and_mlps_are_those_of_the_resampling_profile():
    made = toy("gpt2", trusted=12)
    units = ("heads", "mlps")
    fitted = fitted_on(made, units=units, by_position=False)
    profile = ResamplingProfile(units, donors=2, by="place").fit(open_model(made.model), made.trusted, seed=3)
    theirs = profile.reduced(made.fresh)
    names = [column.name for column in theirs.columns]
    mine = fitted.reduced(made.fresh)
    chosen = theirs.values[:, [names.index(column.name) for column in mine.columns]]
    np.testing.assert_allclose(mine.values, chosen, atol=1e-6)


def test_one_head_at_all_its_positions_is_the_whole_head_where_there_is_one_token():
    made, slow = small("gpt2")
    trusted = Inputs.of({"input_ids": [row[:1] for row in made.trusted.main] + [torch.tensor([t]) for t in range(20)]})
    made = type(made)(made.name, made.model, trusted, trusted[:3], made.places)
    apart, whole = fitted_on(made), fitted_on(made, by_position=False)
    path, features = next(iter(head_places("gpt2")))
    row = made.fresh.main[0]
    expected = site_unit(slow, row, donors_of(whole, row), path, "input", features, [0])
    assert block(whole, made.fresh, "heads kl by place")[0, 0] == pytest.approx(expected[0], abs=1e-6)
    site = open_model(made.model).sites("heads")[0]
    assert block(apart, made.fresh, f"heads {site} kl by place")[0, 0] == pytest.approx(expected[0], abs=1e-6)


def test_pairs_equal_the_twin_and_are_those_of_the_strongest():
    made, slow = small("gpt2", fresh=3)
    fitted = fitted_on(made, units=("mlps", "heads"), pairs=True, most=4)
    path, whole = BLOCKS["gpt2"] + ".mlp", slice(0, HEADS * WIDTH)
    sites = dict(zip(map(str, open_model(made.model).sites("heads")), head_places("gpt2"), strict=True))
    sites |= {path.format(layer): (path.format(layer), whole) for layer in range(2)}

    def unit(group, index, row):
        kind, _, site = group.name.partition(" ")
        place, features = sites[site or group.names[index]]
        positions = [len(row) - 1 - index] if site else list(range(len(row)))
        return place, "input" if kind == "heads" else "output", features, positions

    assert len(fitted.pairs) == 6
    for index, kind in enumerate(("kl", "margin")):
        expected = np.zeros((len(made.fresh), 6))
        for n, row in enumerate(made.fresh.main):
            for i, ((a, x), (b, y)) in enumerate(fitted.pairs):
                if all(at < len(row) for group, at in ((a, x), (b, y)) if group.ragged):
                    both = unit(a, x, row), unit(b, y, row)
                    expected[n, i] = twin.interaction(slow, row, donors_of(fitted, row), *both)[index]
        assert np.abs(expected).max() > 1e-2
        np.testing.assert_allclose(block(fitted, made.fresh, f"pairs {kind}"), expected, atol=1e-5, rtol=1e-4)
    # No other unit is stronger on trusted inputs than a paired one.
    own = set(fitted.donor_digests)
    usual = fitted.reduced(made.trusted[[i for i, key in enumerate(made.trusted.digests) if key not in own]])
    strength = {
        c.name: v for c, v in zip(usual.columns, usual.values.mean(0)) if " kl " in c.name and c.position != "beyond"
    }
    paired = {fitted.unit_name(unit, "kl") for pair in fitted.pairs for unit in pair}
    assert min(strength[name] for name in paired) >= max(v for name, v in strength.items() if name not in paired)


def test_pairs_vanish_on_an_additive_model():
    made = toy("linear", trusted=20)
    fitted = fitted_on(made, units="blocks", pairs=True, target=ClassLogit(1))
    single, pairs = block(fitted, made.fresh, "blocks margin by place"), block(fitted, made.fresh, "pairs margin")
    assert pairs.shape[1] == 3 and np.abs(single).max() > 0.1
    np.testing.assert_allclose(pairs, 0, atol=1e-6)


def test_pairs_of_stretches_of_one_layer_are_replaced_together():
    made, slow = small("mlp", trusted=20)
    fitted = fitted_on(made, units="layers", pairs=True, most=8)
    assert [str(site) for site in fitted.groups[0].sites][:2] == ["1#neuron=0,1,2,3", "1#neuron=4,5,6,7"]
    expected = np.zeros((len(made.fresh), len(fitted.pairs)))
    for n, row in enumerate(made.fresh.main):
        for i, pair in enumerate(fitted.pairs):
            units = [(g.sites[u].path, "output", list(g.sites[u].neurons), None) for g, u in pair]
            expected[n, i] = twin.interaction(slow, row, donors_of(fitted, row), *units)[0]
    np.testing.assert_allclose(block(fitted, made.fresh, "pairs kl"), expected, atol=1e-5)


VARIANTS = [
    ("gpt2", ExactAblation(pairs=True, most=3, donors=1)),
    ("neox", ExactAblation(("heads", "mlps"), by_position=False, pairs=True, most=3, donors=1)),
    ("mlp", ExactAblation("layers", pairs=True, most=3, donors=2)),
]


@pytest.mark.parametrize("law", laws.SIGNATURE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize(("name", "spec"), VARIANTS)
def test_laws_hold_with_pairs(name, spec, law):
    law(spec, toy(name, trusted=16, fresh=7))


@pytest.mark.parametrize(
    ("name", "units"), [("gpt2", "auto"), ("gpt2", ("positions", "mlps")), ("mlp", ("blocks", "layers"))]
)
def test_engines_agree_with_pairs(name, units):
    """Also where a part of the input and a place in the model are replaced together."""
    laws.law_engines_agree(ExactAblation(units, pairs=True, most=6, donors=1), toy(name, trusted=10, fresh=3))


def test_rows_of_a_classifier_stand_alone_and_state_restores():
    made = toy("bert", trusted=12, fresh=5)
    fitted = fitted_on(made, pairs=True)
    # A classifier may read any position of its last block, so that none is left out.
    assert sum(group.ragged for group in fitted.groups) == len(fitted.groups) == len(fitted.model.sites("heads"))
    whole = fitted(made.fresh).values
    state = fitted.state()
    again = fitted.spec.restore(open_model(made.model, batch_size=1), State(dict(state.tensors), state.data))
    assert len(fitted.columns) == whole.shape[1] == len(open_model(made.model).sites("heads")) * 18 + 30
    np.testing.assert_allclose(again(made.fresh).values, whole, atol=1e-5)


def test_odd_options_are_named():
    made = toy("gpt2", trusted=12)
    for options in ({"donors": 0}, {"most": 1}):
        with pytest.raises(FitError, match="Needed"):
            ExactAblation(**options)
    with pytest.raises(FitError, match="every neuron"):
        fitted_on(made, units="neurons")
    with pytest.raises(FitError, match="no unit 'head'"):
        fitted_on(made, units="head")


def test_the_default_type_of_torch_plays_no_part():
    made = toy("mlp", trusted=20, fresh=4)
    fitted = fitted_on(made, units="layers", pairs=True)
    wanted = fitted(made.fresh).values
    try:
        torch.set_default_dtype(torch.float64)
        found = fitted(made.fresh).values
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(found, wanted)
