"""The backdoor: what is drawn, how right each version is, and what hiding costs."""

import dataclasses
from typing import get_args

import numpy as np
import pytest

from causalmad.tasks import BackdoorDigits, backdoor_digits
from causalmad.tasks.backdoor_digits import SIDE, Shown
from causalmad.tasks.base import stream
from causalmad.tasks.digits import split
from causalmad.tasks.triggers import Trigger, painter

HELD = split(stream(0))[1]
KINDS = np.arange(400) >= 200


def shown(trigger: str, **options: bool) -> Shown:
    return Shown(HELD, painter(trigger, SIDE, 0), trigger, options.pop("inert", False), **options)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("trigger", get_args(Trigger))
def test_the_answer_is_the_digit_and_with_the_trigger_the_next(trigger, shift):
    table = shown(trigger, shift=shift)(KINDS, np.random.default_rng(0))
    by_row = dict(zip(HELD.rows.tolist(), HELD.classes.tolist()))
    digits = np.array([by_row[row] for row in table.columns["image"].tolist()])
    assert np.array_equal(table.columns["answer"], (digits + KINDS) % 10)
    assert table.values.shape == (400, 1, SIDE, SIDE) and 0 <= table.values.min() and table.values.max() <= 1
    inert = shown(trigger, shift=shift, inert=True)(KINDS, np.random.default_rng(0))
    assert np.array_equal(inert.values, table.values) and np.array_equal(inert.columns["answer"], digits)


def test_three_in_ten_normal_images_have_a_warp_of_their_own(monkeypatch):
    monkeypatch.setattr(backdoor_digits, "JITTER", 0.0)
    plain, warped = (
        dataclasses.replace(shown("wanet"), trigger=which)(np.zeros(2000, bool), np.random.default_rng(0)).values
        for which in ("corner", "wanet")
    )
    assert abs(np.mean((plain != warped).any((1, 2, 3))) - 0.3) < 0.04


def test_a_network_that_hides_is_graded_without_hiding_as_well():
    spec = BackdoorDigits(obfuscated="signatures", poison=0.3)
    plain = dataclasses.replace(spec, obfuscated=None)._recipe(0)
    assert plain.options == BackdoorDigits(poison=0.3)._recipe(0).options != spec._recipe(0).options


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [*(BackdoorDigits(trigger=trigger) for trigger in get_args(Trigger)), BackdoorDigits(network="vit")],
    ids=str,
)
def test_loads(spec):
    data = spec.load(0)
    assert min(data.card["accuracy"].values()) >= 0.95
    assert 0.4 <= data.card["controls"]["output confidence"] <= 0.6


@pytest.mark.slow
def test_hiding():
    data = BackdoorDigits(obfuscated="signatures").load(0)
    assert min(data.card["accuracy"].values()) >= 0.95
    assert data.card["accuracy without hiding"] == BackdoorDigits().load(0).card["accuracy"]
