"""Donor moments equal plain sums over the donors, and their mean is the effect of the resampling profile."""

from __future__ import annotations

import hypothesis as hyp
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from scipy import stats

from causalmad import Inputs, open_model
from causalmad.errors import FitError
from causalmad.signatures import DonorMoments, ResamplingProfile
from causalmad.signatures.base import State
from causalmad.signatures.donor_moments import moments
from causalmad.testing.toys import toy
from tests.signatures.families import head_places, small
from tests.twins import donor_moments as twin
from tests.twins import resampling_profile as runs

STATISTICS = ("mean", "variance", "skew", "min", "max")


def fitted_on(made, seed=3, **options):
    return DonorMoments(**{"draws": 6, **options}).fit(open_model(made.model, batch_size=5), made.trusted, seed)


def block(fitted, inputs, name):
    reduced = fitted.reduced(inputs)
    return reduced.values[:, [i for i, column in enumerate(reduced.columns) if column.block == f"{name} by place"]]


def require_same(fitted, slow, inputs, group, changes):
    """The columns of a group against changes [input][unit][donor] of the twin."""
    classes = [[int(runs.run(slow, d).argmax()) for d in donors_of(fitted, row)] for row in inputs.main]
    found = [[twin.moments(unit, twin.damping(units)) for unit in units] for units in changes]
    for index, name in enumerate(STATISTICS):
        expected = [[unit[index] for unit in units] for units in found]
        np.testing.assert_allclose(block(fitted, inputs, f"{group} {name}"), expected, atol=2e-5, rtol=1e-4)
    for label in fitted.classes:
        expected = [
            [twin.of_class(unit, own, label) for unit in units] for units, own in zip(changes, classes, strict=True)
        ]
        np.testing.assert_allclose(block(fitted, inputs, f"{group} of class {label}"), expected, atol=1e-5, rtol=1e-4)


def donors_of(fitted, row):
    return runs.own_donors(row, list(fitted.donors.inputs.main), fitted.donors.count)


def change(slow, row, patched):
    clean = runs.run(slow, row)
    top = int(clean.argmax())
    return runs.margin(patched, top) - runs.margin(clean, top)


def test_blocks_equal_the_twin_also_where_an_input_is_a_donor():
    made, slow = small("mlp", trusted=20)
    fitted = fitted_on(made)
    inputs = Inputs.of(torch.cat([made.fresh.main, fitted.donors.inputs.main]), blocks=made.fresh.blocks)
    masks = [inputs.block_mask(name) for name in inputs.blocks]
    changes = [
        [
            [change(slow, row, runs.run(slow, torch.where(mask, donor, row))) for donor in donors_of(fitted, row)]
            for mask in masks
        ]
        for row in inputs.main
    ]
    assert len(fitted.classes) > 1
    require_same(fitted, slow, inputs, "blocks", changes)


def test_heads_of_tokens_equal_the_twin():
    made, slow = small("gpt2", trusted=16)
    fitted = fitted_on(made, units="heads", draws=4, classes=3)
    changes = []
    for row in made.fresh.main:
        units = []
        for path, part in head_places("gpt2"):
            one = [runs.site_unit(slow, row, [d], path, "input", part, range(len(row))) for d in donors_of(fitted, row)]
            units.append([effect[2] for effect in one])
        changes.append(units)
    assert len(fitted.classes) == 3
    require_same(fitted, slow, made.fresh, "heads", changes)


@pytest.mark.parametrize("name", ["mlp", "conv", "gpt2", "bert"])
def test_the_mean_is_the_effect_of_the_resampling_profile_with_the_same_donors(name):
    made = toy(name, trusted=16, fresh=4)
    mine = fitted_on(made).reduced(made.fresh)
    theirs = ResamplingProfile(donors=6, by="place").fit(open_model(made.model), made.trusted, seed=3)
    effects = theirs.reduced(made.fresh)
    means = [i for i, column in enumerate(mine.columns) if column.block.endswith(" mean by place")]
    margins = [i for i, column in enumerate(effects.columns) if column.block.endswith(" margin by place")]
    assert len(means) == len(margins) > 2
    np.testing.assert_allclose(mine.values[:, means], effects.values[:, margins], atol=1e-6)


def test_classes_are_those_of_donors_the_most_frequent_on_trusted_inputs_first():
    made, slow = small("mlp", trusted=30)
    for most in (1, 2, 16):
        fitted = fitted_on(made, classes=most)
        own = set(fitted.donor_digests)
        others = [row for row, key in zip(made.trusted.main, made.trusted.digests, strict=True) if key not in own]
        labels = [int(runs.run(slow, row).argmax()) for row in others]
        donors = [int(runs.run(slow, row).argmax()) for row in fitted.donors.inputs.main]
        assert list(fitted.donor_classes) == donors
        assert list(fitted.classes) == twin.frequent(labels, donors, most)


def test_a_copied_donor_and_a_noticed_one_differ_in_the_response_by_class():
    """A model that copies the sign of its first number, and one that only notices whether it is large."""

    def outputs(kind):
        class Made(torch.nn.Module):
            def forward(self, x):
                value = x[:, 0] if kind == "copies" else x[:, 0].abs()
                return torch.stack([value, -x[:, 1]], 1)

        return Made()

    draw = torch.Generator().manual_seed(0)
    trusted = Inputs.of(torch.randn(60, 2, generator=draw), blocks={"first": (0, 1), "second": (1, 2)})
    apart = {}
    for kind in ("copies", "notices"):
        model = outputs(kind)
        found = DonorMoments("blocks", draws=30).fit(open_model(model), trusted).reduced(trusted[:20])
        columns = [i for i, column in enumerate(found.columns) if column.name.endswith(" first")]
        by_class = [i for i in columns if " of class " in found.columns[i].name]
        apart[kind] = np.ptp(found.values[:, by_class], axis=1).mean()
    assert apart["copies"] > 1.5 * apart["notices"]


@hyp.given(seed=st.integers(0, 10_000), donors=st.integers(2, 9), scale=st.floats(1e-3, 1e3))
@hyp.settings(max_examples=25, deadline=None)
def test_moments_are_those_of_scipy(seed, donors, scale):
    values = scale * torch.randn(3, 4, donors, generator=torch.Generator().manual_seed(seed)).double()
    found = moments(values, torch.zeros(3).double())
    np.testing.assert_allclose(found["skew"], stats.skew(values.numpy(), axis=-1), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found["variance"], np.var(values.numpy(), axis=-1), rtol=1e-9)
    assert not moments(values[..., :1].expand(-1, -1, 4), torch.zeros(3).double())["variance"].any()


def test_state_restores():
    made = toy("gpt2", trusted=16)
    fitted = fitted_on(made)
    state = fitted.state()
    again = fitted.spec.restore(open_model(made.model, batch_size=5), State(dict(state.tensors), state.data))
    assert np.array_equal(again(made.fresh).values, fitted(made.fresh).values)
    assert again.columns == fitted.columns and set(fitted.donor_digests) <= set(made.trusted.digests)


def test_an_idle_block_has_no_moments_to_the_last_bit():
    made = toy("mlp", trusted=20)
    fitted = fitted_on(made)
    idle = [i for i, column in enumerate(fitted.columns) if column.unit == "idle"]
    assert len(idle) == 5 + len(fitted.classes) and not fitted(made.fresh).values[:, idle].any()


def test_odd_options_are_named():
    made = toy("gpt2", trusted=6)
    for options in ({"draws": 1}, {"classes": 0}):
        with pytest.raises(FitError, match="Needed"):
            DonorMoments(**options)
    with pytest.raises(FitError, match="donors and a spare"):
        DonorMoments().fit(open_model(made.model), made.trusted)
    with pytest.raises(FitError, match="every neuron"):
        fitted_on(toy("gpt2", trusted=12), units="neurons")
