import math

import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as draws
from scipy.integrate import quad

from causalmad.calibration.martingale import POWERS, STEPS, Betting, log_capitals
from causalmad.errors import CalibrationError
from tests.twins import calibration as twin

p_values = draws.lists(draws.floats(1e-6, 1), min_size=1, max_size=12)


@for_all(p=p_values)
def test_equals_the_mixture_of_products(p):
    expected = [math.log(twin.capital(p[: t + 1], POWERS, STEPS, t + 1)) for t in range(len(p))]
    np.testing.assert_allclose(log_capitals(p), expected, rtol=1e-9, atol=1e-9)


@for_all(p=p_values)
def test_a_bet_never_wins_by_a_larger_p_value(p):
    betting = Betting()
    for value in p:
        betting = betting.bet(value)
    gains = [betting.bet(value).log_capital for value in np.linspace(0.001, 1, 50)]
    assert (np.diff(gains) <= 1e-12).all()


def test_a_bet_is_fair_against_a_uniform_p_value():
    betting = Betting().bet(0.3).bet(0.01).bet(0.9)
    # With p = exp(-x) nothing is infinite.
    borders = sorted({-math.log(border) for border, _ in STEPS})

    def gain(x):
        return math.exp(betting.bet(math.exp(-x)).log_capital - betting.log_capital - x)

    pieces = zip([0.0, *borders], [*borders, 600.0], strict=True)
    assert sum(quad(gain, *piece, limit=500)[0] for piece in pieces) == pytest.approx(1, abs=1e-6)


def test_it_starts_at_one_and_keeps_its_highest():
    betting = Betting()
    assert betting.log_capital == 0
    for _ in range(20):
        betting = betting.bet(0.001)
    top = betting.log_capital
    for _ in range(50):
        betting = betting.bet(1.0)
    assert betting.highest == top > betting.log_capital


def test_a_change_after_a_long_calm_is_still_found():
    calm = np.random.default_rng(0).random(20_000)
    capitals = log_capitals(np.concatenate([calm, np.full(60, 0.02)]))
    assert capitals[:20_000].max() < math.log(100) < capitals[-1]


def test_no_underflow_and_no_overflow():
    assert np.isfinite(log_capitals(np.full(5000, 1.0))).all()
    assert np.isfinite(log_capitals(np.full(5000, 1e-12))).all()


@pytest.mark.parametrize("p", [0.0, -0.1, 1.1, math.nan])
def test_what_is_no_p_value_is_named(p):
    with pytest.raises(CalibrationError):
        Betting().bet(p)


def test_what_is_no_state_is_named():
    for options in ({"steps": -1}, {"log_stakes": (0.0,)}, {"highest": math.nan}):
        with pytest.raises(CalibrationError):
            Betting(**options)
