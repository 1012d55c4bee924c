"""A minority that stands apart is found with its members; data of one kind, of many kinds and of ReLUs has none."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from causalmad.errors import InputsError
from causalmad.groups import apart


def test_zeros_of_a_relu_are_no_group():
    draw = np.random.default_rng(0)
    assert not any(apart(np.maximum(draw.normal(size=(200, 1)), 0))[1].any() for _ in range(20))


def test_clean_rows_are_reported_about_as_often_as_the_level_says():
    draw = np.random.default_rng(0)
    assert sum(apart(draw.random((100, 5)))[0] <= 0.1 for _ in range(200)) <= 30


def test_more_rows_than_the_dip_has_p_values_for(recwarn):
    rows, odd = mixture(0, 80_000, 0.1, columns=8)
    members = apart(rows)[1]
    assert (members == odd).mean() > 0.98 and not recwarn


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


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_named_and_warn_of_nothing(bad):
    rows, _ = mixture(0, 100, 0.2)
    rows[7, 3] = bad
    with pytest.raises(InputsError, match=r"NaN or infinity in column 3 \(row 7\)"):
        apart(rows)
    with pytest.raises(InputsError, match="shape"):
        apart(rows[0])


@pytest.mark.filterwarnings("error")
def test_very_large_and_very_small_numbers_are_like_others():
    rows, odd = mixture(0, 400, 0.2)
    wanted = apart(rows)
    for scale in (2.0**1000, 2.0**-1000, np.where(np.arange(rows.shape[1]) % 2, 2.0**900, 1.0)):
        found = apart(rows * scale)
        assert found[0] == wanted[0] and np.array_equal(found[1], wanted[1])
    assert (wanted[1] == odd).mean() > 0.98
