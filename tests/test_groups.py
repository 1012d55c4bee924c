"""A minority that stands apart is found with its members; data of one kind, of many kinds and of ReLUs has none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as draws
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from causalmad.groups import apart, dip, dip_p_value
from tests.twins import dip as twin

NUMBERS = draws.lists(draws.integers(-6, 6) | draws.floats(-5, 5, width=32), min_size=1, max_size=14)


@settings(deadline=None, max_examples=50)
@given(NUMBERS)
def test_the_dip_is_that_of_its_definition(values):
    """Equal numbers are spread, which adds a step of one number at most."""
    found, wanted = dip(values), twin.dip(values)
    assert wanted - 1e-6 <= found <= wanted + 0.5 / len(values) + 1e-6


@pytest.mark.parametrize("seed", range(12))
def test_without_ties_the_dip_is_exactly_that(seed):
    draw = np.random.default_rng(seed)
    values = draw.normal(size=18) + (5 * (draw.random(18) < 0.3) if seed % 2 else 0)
    assert dip(values) == pytest.approx(twin.dip(values), abs=1e-7)
    assert dip(values[::-1] * 3 - 7) == pytest.approx(dip(values), abs=1e-7)
    assert dip(-values) == pytest.approx(dip(values), abs=1e-7)


def test_p_values_of_dips_hold_for_uniform_numbers_and_for_zeros_of_a_relu():
    draw = np.random.default_rng(0)
    for count in (30, 150):
        p = np.array([dip_p_value(dip(draw.random(count)), count) for _ in range(600)])
        assert (p <= 0.1).mean() < 0.12 and (p <= 0.01).mean() < 0.02
        assert (p <= 0.1).mean() > 0.02
    relu = [dip_p_value(dip(np.maximum(draw.normal(size=200), 0)), 200) for _ in range(50)]
    assert min(relu) > 0.1


def mixture(seed, count, share, columns=20, shift=9.0):
    draw = np.random.default_rng(seed)
    rows, odd = draw.normal(size=(count, columns)), np.arange(count) < round(share * count)
    rows[odd, :6] += shift
    return np.maximum(rows @ draw.normal(size=(columns, 40)), 0), odd


def test_a_minority_is_found_with_its_members():
    for seed in range(5):
        rows, odd = mixture(seed, 400, 0.2)
        p_value, members = apart(rows)
        assert p_value < 1e-3
        assert (members == odd).mean() > 0.98


def test_data_of_one_kind_and_of_many_kinds_has_none():
    draw = np.random.default_rng(1)
    found = [apart(mixture(seed, 300, 0.0)[0])[1].any() for seed in range(20)]
    centres = 12 * draw.normal(size=(8, 20))
    many = draw.normal(size=(400, 20)) + centres[draw.integers(0, 8, 400)]
    assert not any(found) and not apart(many)[1].any()
    halves = draw.normal(size=(300, 5)) + 9 * (np.arange(300) % 2)[:, None]
    assert not apart(halves)[1].any()


def test_activations_of_a_trained_network_have_none():
    images, labels = load_digits(return_X_y=True)
    net = MLPClassifier((32,), max_iter=40, random_state=0)
    with pytest.warns(match="Maximum iterations"):
        net.fit(images / 16, labels)
    inside = np.maximum(images / 16 @ net.coefs_[0] + net.intercepts_[0], 0)
    draw = np.random.default_rng(2)
    assert not any(apart(inside[draw.permutation(len(inside))[:400]])[1].any() for _ in range(10))


def test_rows_without_anything_to_see_have_none():
    for rows in (np.zeros((30, 4)), np.ones((1, 3)), np.empty((5, 0)), np.eye(3)):
        p_value, members = apart(rows)
        assert p_value == 1 and not members.any() and len(members) == len(rows)
