import itertools

import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as draws

from causalmad.calibration.base import Calibrator, FittedCalibrator
from causalmad.calibration.conformal import Conformal, inputs_needed
from causalmad.errors import CalibrationError, StoreError
from tests.twins import conformal as twin

numbers = draws.floats(allow_nan=False)
few = draws.integers(0, 4).map(float)


@for_all(calibration=draws.lists(draws.one_of(numbers, few), min_size=1), new=draws.lists(draws.one_of(numbers, few)))
def test_equals_counting(calibration, new):
    expected = [twin.p_value(calibration, score) for score in new]
    assert Conformal().fit(calibration).p_values(new).tolist() == expected


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_super_uniform_on_every_ranking_with_ties(n):
    """Each of the n + 1 exchangeable scores is equally likely to be the new one, for every list of n + 1 ranks."""
    levels = [k / (n + 1) for k in range(1, n + 2)] + [0.01, 0.2999, 0.77]
    # Which of the n + 1 is new is gone through below, so the order of the list does not matter.
    for ranks in itertools.combinations_with_replacement(range(n + 1), n + 1):
        p = [Conformal().fit(ranks[:i] + ranks[i + 1 :]).p_values([ranks[i]])[0] for i in range(n + 1)]
        for alpha in levels:
            assert sum(value <= alpha for value in p) / (n + 1) <= alpha
        if len(set(ranks)) == n + 1:  # without ties: exactly uniform
            assert sorted(p) == [k / (n + 1) for k in range(1, n + 2)]


@pytest.mark.parametrize("ties", [False, True])
def test_super_uniform_by_simulation(ties):
    random = np.random.default_rng(0)
    p = []
    for _ in range(4000):
        scores = random.normal(size=60) ** 3
        scores = np.round(scores) if ties else scores
        p.append(Conformal().fit(scores[:50]).p_values(scores[50:]))
    for alpha in (0.02, 0.05, 0.1, 0.5):
        share = np.array([(values <= alpha).mean() for values in p])
        assert share.mean() <= alpha + 4 * share.std() / len(share) ** 0.5


@for_all(calibration=draws.lists(few, min_size=1), new=draws.lists(few, min_size=1))
def test_a_higher_score_never_has_a_larger_p_value(calibration, new):
    p = Conformal().fit(calibration).p_values(sorted(new))
    assert (np.diff(p) <= 0).all()
    assert (p >= Conformal().fit(calibration).smallest).all() and (p <= 1).all()


def test_infinite_scores_are_scores():
    fitted = Conformal().fit([0.0, 1.0, np.inf])
    assert fitted.p_values([np.inf, -np.inf, 2.0]).tolist() == [0.5, 1.0, 0.5]
    assert fitted.p_values([]).shape == (0,)


def test_out_of_reach_alpha_says_what_it_takes():
    with pytest.raises(CalibrationError) as caught:
        Conformal().fit(np.arange(200)).require(0.001)
    assert str(caught.value) == (
        "alpha=0.001 can never flag anything: with 200 calibration inputs the smallest p-value is 1/201 = 0.005\n"
        "  Try one of: alpha >= 0.005 | at least 999 calibration inputs"
    )


@for_all(n=draws.integers(1, 3000), alpha=draws.floats(1e-4, 0.999))
def test_what_the_error_proposes_works(n, alpha):
    fitted = Conformal().fit(np.zeros(n))
    needed = inputs_needed(alpha)
    Conformal().fit(np.zeros(needed)).require(alpha)
    assert needed == 1 or 1 / needed > alpha
    try:
        fitted.require(alpha)
        assert n >= needed and fitted.p_values([1.0])[0] <= alpha
    except CalibrationError as error:
        assert n < needed and fitted.p_values([1.0])[0] > alpha
        proposed = float(error.tries[0].removeprefix("alpha >= "))
        if proposed < 1:
            fitted.require(proposed)


@pytest.mark.parametrize(("alpha", "n"), [(0.05, 19), (0.01, 99), (0.001, 999), (0.5, 1), (0.9, 1), (1 / 3, 2)])
def test_inputs_needed(alpha, n):
    assert inputs_needed(alpha) == n


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 5, np.nan, np.inf, "0.05", None, True])
def test_alpha_is_a_share(alpha):
    with pytest.raises(CalibrationError, match="strictly between 0 and 1"):
        Conformal().fit(np.arange(200)).require(alpha)


def test_bad_scores_are_named():
    with pytest.raises(CalibrationError, match="no calibration scores"):
        Conformal().fit([])
    with pytest.raises(CalibrationError, match="2 of 3 calibration scores are NaN, the first at place 1"):
        Conformal().fit([0.0, np.nan, np.nan])
    with pytest.raises(CalibrationError, match="1 of 1 scores"):
        Conformal().fit([0.0]).p_values([np.nan])
    with pytest.raises(CalibrationError, match=r"\(1, 3\)"):
        Conformal().fit([[0.0, 1.0, 2.0]])
    with pytest.raises(CalibrationError, match="no array"):
        Conformal().fit([[0.0], [1.0, 2.0]])
    with pytest.raises(CalibrationError, match="dtype"):
        Conformal().fit(["high"])


def test_restore_is_exact_and_refuses_what_is_broken():
    fitted = Conformal().fit(np.random.default_rng(0).normal(size=30))
    state = fitted.state()
    new = np.random.default_rng(1).normal(size=9)
    assert (Conformal().restore(state).p_values(new) == fitted.p_values(new)).all()
    for broken in ({}, {"scores": state["scores"][::-1]}, {"scores": state["scores"] * np.nan}, {"scores": np.ones(0)}):
        with pytest.raises(StoreError):
            Conformal().restore(broken)


def test_a_fit_keeps_its_own_copy():
    scores = np.array([3.0, 1.0])
    fitted = Conformal().fit(scores)
    scores[:] = 9
    assert fitted.scores.tolist() == [1.0, 3.0]
    with pytest.raises(ValueError, match="read-only"):
        fitted.scores[0] = 5


def test_is_what_the_interfaces_say():
    assert isinstance(Conformal(), Calibrator)
    assert isinstance(Conformal().fit([1.0]), FittedCalibrator)
