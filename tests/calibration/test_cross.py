import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as draws

from causalmad.calibration import Calibrator, Conformal, CrossConformal
from causalmad.errors import CalibrationError, SpecError, StoreError
from tests.twins import calibration as twin

few = draws.integers(0, 4).map(float)


@for_all(scores=draws.lists(few, min_size=3, max_size=20), new=draws.lists(draws.tuples(few, few, few), min_size=1))
def test_equals_counting(scores, new):
    folds = np.arange(len(scores)) % 3
    fitted = CrossConformal(3).fit(scores, folds=folds)
    assert fitted.p_values(np.array(new)).tolist() == [twin.cross(scores, folds, row) for row in new]


def test_one_fold_is_split_conformal():
    scores, new = np.random.default_rng(0).normal(size=(2, 30))
    expected = Conformal().fit(scores).p_values(new).tolist()
    assert CrossConformal().fit(scores).p_values(new).tolist() == expected
    assert CrossConformal().fit(scores).p_values(new[:, None]).tolist() == expected


def test_what_does_not_fit_is_named():
    with pytest.raises(SpecError):
        CrossConformal(1)
    fitted = CrossConformal(2).fit(np.arange(4.0), folds=[0, 1, 0, 1])
    for scores in ([1.0], np.zeros((3, 3)), np.array([[np.nan, 1.0]])):
        with pytest.raises(CalibrationError):
            fitted.p_values(scores)
    for folds in ([0, 0, 2, 2], [0, 1], [0.5] * 4, [-1, 0, 0, 0]):
        with pytest.raises(CalibrationError):
            CrossConformal(2).fit(np.arange(4.0), folds=folds)
    with pytest.raises(CalibrationError, match="19 inputs in folds"):
        fitted.require(0.05)


def test_restore_is_exact_and_refuses_what_is_broken():
    fitted = CrossConformal(2).fit(np.array([3.0, 1, 2, 0]), folds=[0, 1, 0, 1])
    state = fitted.state()
    new = np.array([[1.0, 0.5], [9, 9]])
    assert (CrossConformal(2).restore(state).p_values(new) == fitted.p_values(new)).all()
    for broken in ({}, {"1": state["1"]}, {**state, "0": state["0"][::-1]}):
        with pytest.raises(StoreError):
            CrossConformal(2).restore(broken)


def test_is_what_the_interfaces_say():
    assert isinstance(CrossConformal(), Calibrator)
