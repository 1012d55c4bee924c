import numpy as np
import pytest
from scipy.stats import binom

from causalmad.calibration import CalibrationConditional, Conformal
from causalmad.calibration.calibration_conditional import bounds
from causalmad.errors import CalibrationError, SpecError, StoreError
from tests.twins import calibration as twin

METHODS = ("monte-carlo", "simes", "asymptotic", "dkwm")


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("n", [16, 17, 90, 300])
@pytest.mark.parametrize("delta", [0.1, 0.01])
def test_equals_the_formulas(method, n, delta):
    raw = getattr(twin, method.replace("-", "_"))(n, delta)
    expected, highest = [], 0.0
    for k, value in enumerate(raw, 1):
        highest = max(highest, value, k / (n + 1))
        expected.append(min(highest, 1.0))
    np.testing.assert_allclose(bounds(method, n, delta), [*expected, 1.0], rtol=1e-9)


def test_monte_carlo_is_the_smaller_of_both_at_one_level():
    """At small p-values near simes, in the middle far below it."""
    found = bounds("monte-carlo", 200, 0.1)
    assert 0.7 * bounds("simes", 200, 0.1)[0] < found[0] < bounds("simes", 200, 0.03)[0]
    assert found[99] < bounds("simes", 200, 0.1)[99] and found[99] < bounds("dkwm", 200, 0.1)[99] + 0.02
    assert (np.diff(found) >= 0).all() and found[-1] == 1


@pytest.mark.parametrize(
    ("method", "n", "slack"),
    [("monte-carlo", 5, 0), ("monte-carlo", 60, 0), ("simes", 60, 0), ("dkwm", 60, 0), ("asymptotic", 500, 0.05)],
)
def test_uniform_order_statistics_stay_below_the_bound_but_for_delta(method, n, slack):
    """The asymptotic bound is one for large n only, hence its slack."""
    delta, sets = 0.1, 10_000
    draw = np.random.default_rng(7)
    crossed = 0
    for _ in range(10):
        ordered = np.sort(draw.random((sets // 10, n)), axis=1)
        crossed += int((ordered > bounds(method, n, delta)[:-1]).any(axis=1).sum())
    assert crossed <= binom.ppf(0.9999, sets, delta + slack + 0.01 * (method == "monte-carlo"))
    if method == "monte-carlo" and n > 16:
        assert crossed >= binom.ppf(0.0001, sets, 0.08)  # and hardly wider than that


def test_never_below_plain_p_values_and_in_the_same_order():
    scores = np.random.default_rng(0).normal(size=50).round(1)
    new = np.linspace(-3, 3, 60)
    plain = Conformal().fit(scores).p_values(new)
    for method in METHODS:
        p = CalibrationConditional(method).fit(scores).p_values(new)
        assert (p >= plain).all() and (np.diff(p) <= 0).all() and (p <= 1).all()


def test_a_smaller_delta_never_gives_smaller_p_values():
    for method in METHODS:
        smallest = [bounds(method, 100, delta) for delta in (0.2, 0.05, 0.005)]
        assert (smallest[0] <= smallest[1]).all() and (smallest[1] <= smallest[2]).all()


def test_out_of_reach_alpha_says_what_would_do():
    fitted = CalibrationConditional().fit(np.arange(99))
    fitted.require(0.1)
    with pytest.raises(
        CalibrationError, match=r"valid given these inputs is 0\.039(.|\n)*about \d+ calibration inputs"
    ):
        fitted.require(0.01)
    with pytest.raises(CalibrationError, match="at least 16"):
        CalibrationConditional("asymptotic").fit(np.arange(9.0))


def test_rare_deltas_are_those_of_simes():
    np.testing.assert_array_equal(bounds("monte-carlo", 50, 1e-6), bounds("simes", 50, 1e-6))


def test_restore_is_exact_and_refuses_what_is_broken():
    spec = CalibrationConditional()
    fitted = spec.fit(np.random.default_rng(0).normal(size=30))
    state = fitted.state()
    new = np.linspace(-3, 3, 20)
    assert (spec.restore(state).p_values(new) == fitted.p_values(new)).all()
    for broken in ({}, {**state, "bounds": state["bounds"][::-1]}, {**state, "bounds": state["bounds"][1:]}):
        with pytest.raises(StoreError):
            spec.restore(broken)


def test_odd_options_are_named():
    with pytest.raises(SpecError, match="monte-carlo"):
        CalibrationConditional("montecarlo")
    for delta in (0, 1, -1):
        with pytest.raises(SpecError, match="delta"):
            CalibrationConditional(delta=delta)
