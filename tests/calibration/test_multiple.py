import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as draws
from scipy.integrate import quad

from causalmad.calibration import reject
from causalmad.calibration.multiple import adjusted, e_values, fewest
from causalmad.errors import CalibrationError
from tests.twins import calibration as twin

METHODS = ("bh", "by", "storey", "e-bh")
some = draws.lists(draws.integers(1, 200).map(lambda k: k / 200), min_size=1, max_size=30)


@for_all(p=some, alpha=draws.sampled_from([0.0131, 0.0573, 0.2117, 0.5303]))
def test_equals_the_step_up_procedures(p, alpha):
    m = len(p)
    assert reject(p, alpha).tolist() == twin.step_up(p, alpha)
    assert reject(p, alpha, "by").tolist() == twin.step_up(p, alpha, harmonic=True)
    share = (1 + sum(value > 0.5 for value in p)) / (m / 2)
    expected = [flag and value <= 0.5 for flag, value in zip(twin.step_up(p, alpha, share), p, strict=True)]
    assert reject(p, alpha, "storey").tolist() == expected
    assert reject(p, alpha, "e-bh").tolist() == twin.e_step_up(e_values(p), alpha)


@for_all(p=some)
def test_adjusted_p_values_are_in_the_order_of_the_p_values(p):
    order = np.argsort(p, kind="stable")
    for method in METHODS:
        found = adjusted(p, method)
        assert (np.diff(found[order]) >= -1e-12).all() and (found <= 1).all() and (found >= 0).all()


def test_e_values_have_a_mean_of_one():
    # With p = exp(-x); the tail beyond x = 500 holds 1 / 500 of the mean.
    assert quad(lambda x: e_values([np.exp(-x)])[0] * np.exp(-x), 0, 500, limit=500)[0] == pytest.approx(
        0.998, abs=1e-5
    )
    p = np.linspace(1e-6, 1, 10_001)
    assert (np.diff(e_values(p)) <= 1e-9).all()
    assert e_values([1.0])[0] == pytest.approx(0.5)
    by_hand = quad(lambda k: k * 0.03 ** (k - 1), 0, 1)[0]
    assert e_values([0.03])[0] == pytest.approx(by_hand)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("m", "floor", "alpha"), [(10, 1 / 31, 0.05), (40, 1 / 400, 0.1), (5, 1 / 20, 0.2)])
def test_the_fewest_inputs_that_are_flagged_together(method, m, floor, alpha):
    """By trying all numbers of inputs at the floor."""
    works = [k for k in range(m + 1) if reject([floor] * k + [1.0] * (m - k), alpha, method).any()]
    assert fewest(np.full(m, floor), alpha, method) == (works[0] if works else None)


def test_what_benjamini_and_hochberg_can_reach():
    """k of m only where k alpha / m is at least 1 / (n + 1)."""
    for n, m, alpha in ((99, 50, 0.1), (30, 10, 0.05), (200, 1000, 0.2)):
        expected = next((k for k in range(1, m + 1) if k * alpha / m >= 1 / (n + 1)), None)
        assert fewest(np.full(m, 1 / (n + 1)), alpha) == expected
    assert fewest([], 0.1) == 0


def test_bad_numbers_are_named():
    for p in ([0.5, np.nan], [-0.1], [1.1], [[0.5]]):
        with pytest.raises(CalibrationError):
            reject(p, 0.1)
    with pytest.raises(CalibrationError, match=r"'bh'"):
        reject([0.5], 0.1, "bhh")
    with pytest.raises(CalibrationError, match="alpha"):
        reject([0.5], 0)
    assert reject([], 0.1).shape == (0,)


def test_storey_keeps_its_bound_where_all_are_normal():
    rng, few = np.random.default_rng(0), 5
    flagged = [reject(rng.random(few), 0.2, "storey").any() for _ in range(20_000)]
    assert np.mean(flagged) < 0.2 + 3 * np.sqrt(0.16 / 20_000)  # 0.23 with the estimate cut off at 1
