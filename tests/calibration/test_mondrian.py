import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as draws

from causalmad.calibration import CalibrationConditional, Calibrator, Conformal, CrossConformal, Mondrian, Weighted
from causalmad.errors import CalibrationError, SpecError, StoreError
from tests.twins import calibration as twin

pairs = draws.lists(draws.tuples(draws.integers(0, 4).map(float), draws.integers(0, 1)), min_size=1)


@for_all(calibration=pairs, new=pairs)
def test_equals_counting_within_strata(calibration, new):
    scores, labels = map(np.array, zip(*calibration, strict=True))
    new = [(score, label) for score, label in new if label in labels]
    if not new:
        return
    fresh, kinds = map(np.array, zip(*new, strict=True))
    found = Mondrian().fit(scores, covariates={"class": labels}).p_values(fresh, covariates={"class": kinds})
    assert found.tolist() == [twin.within(scores, labels, *pair) for pair in new]


def test_one_stratum_is_conformal():
    scores, new = np.random.default_rng(0).normal(size=(2, 40))
    same = {"class": np.zeros(40, int)}
    found = Mondrian().fit(scores, covariates=same).p_values(new, covariates=same)
    assert found.tolist() == Conformal().fit(scores).p_values(new).tolist()


@pytest.mark.parametrize("bins", [2, 3, 5])
def test_bins_hold_equal_shares_and_new_values_fall_in_the_outer_ones(bins):
    lengths = np.random.default_rng(0).permutation(60)
    fitted = Mondrian("length", bins=bins).fit(np.arange(60.0), covariates={"length": lengths})
    sizes = [len(one.scores) for one in fitted.strata.values()]
    assert sizes == [60 // bins] * bins
    p = fitted.p_values(np.array([1e9, 1e9]), covariates={"length": np.array([-5, 900])})
    assert p.tolist() == [1 / (60 // bins + 1)] * 2


def test_bins_on_a_constant_are_one_stratum():
    same = {"length": np.full(10, 3)}
    fitted = Mondrian("length", bins=4).fit(np.arange(10.0), covariates=same)
    assert fitted.smallest == 1 / 11
    assert fitted.p_values(np.full(10, 99.0), covariates=same).tolist() == [1 / 11] * 10


def test_small_strata_are_named():
    labels = np.repeat(["cat", "dog", "emu"], [30, 5, 2])
    fitted = Mondrian("kind").fit(np.arange(37.0), covariates={"kind": labels})
    fitted.require(0.34)
    with pytest.raises(CalibrationError, match=r"within kind dog \(p at least 0\.17\), emu \(p at least 0\.33\)"):
        fitted.require(0.05)


def test_a_stratum_without_calibration_inputs_is_named_and_never_quietly_kept():
    fitted = Mondrian().fit(np.arange(6.0), covariates={"class": [0, 0, 0, 1, 1, 1]})
    with pytest.raises(CalibrationError, match=r"1 of 2 inputs are of class 7(.|\n)*one of 0, 1"):
        fitted.p_values([1.0, 9.0], covariates={"class": [0, 7]})


def test_whole_numbers_are_the_same_however_they_come():
    fitted = Mondrian("kind").fit(np.arange(6.0), covariates={"kind": np.array([0.0, 0, 0, 1, 1, 1])})
    for kinds in ([0, 1], np.array([0.0, 1.0], np.float32), ["0", "1"]):
        assert fitted.p_values([9.0, 9.0], covariates={"kind": kinds}).tolist() == [0.25, 0.25]


@pytest.mark.parametrize("bins", [None, 3])
@pytest.mark.parametrize("inner", [Conformal(), CalibrationConditional("simes")])
def test_restore_is_exact_and_refuses_what_is_broken(bins, inner):
    spec = Mondrian("size", inner, bins)
    labels = np.arange(40) % 4
    fitted = spec.fit(np.random.default_rng(0).normal(size=40), covariates={"size": labels})
    new, sizes = np.linspace(-2, 2, 8), {"size": np.arange(8) % 4}
    state = fitted.state()
    assert (spec.restore(state).p_values(new, covariates=sizes) == fitted.p_values(new, covariates=sizes)).all()
    for broken in ({}, {**state, "edges": np.array([np.nan])}, {k: v for k, v in state.items() if k != "0:scores"}):
        with pytest.raises(StoreError):
            spec.restore(broken)


def test_conditional_p_values_are_never_smaller_and_share_delta():
    labels = {"class": np.arange(200) % 2}
    scores = np.random.default_rng(0).normal(size=200)
    fitted = Mondrian().fit(scores, covariates=labels)
    valid = fitted.conditional(0.1)
    assert (valid.p_values(scores, covariates=labels) >= fitted.p_values(scores, covariates=labels)).all()
    assert valid.smallest == Conformal().fit(scores[:100]).conditional(0.05).smallest


def test_odd_options_and_covariates_are_named():
    for options in ({"by": ""}, {"by": 3}, {"bins": 1}, {"calibrator": CrossConformal()}, {"calibrator": Weighted()}):
        with pytest.raises(SpecError):
            Mondrian(**options)
    scores = np.arange(4.0)
    cases = {
        "no covariate 'class'": {"clas": np.zeros(4)},
        "shape": {"class": np.zeros(3)},
        "NaN or infinity": {"class": np.array([0, 1, np.nan, 1])},
    }
    for text, covariates in cases.items():
        with pytest.raises(CalibrationError, match=text):
            Mondrian().fit(scores, covariates=covariates)
    with pytest.raises(CalibrationError, match="no number"):
        Mondrian("kind", bins=2).fit(scores, covariates={"kind": list("abcd")})


def test_is_what_the_interfaces_say():
    assert isinstance(Mondrian(), Calibrator) and Mondrian("length").asks == ("length",)


def test_ties_leave_no_bin_empty_and_bins_are_named_by_their_borders():
    lengths = np.array([5.0] * 60 + [9.0] * 40)
    fitted = Mondrian(by="length", bins=3).fit(np.arange(100.0), covariates={"length": lengths})
    assert len(fitted.strata) == 2
    assert fitted.p_values([50.0], covariates={"length": [4.0]}).shape == (1,)
    with pytest.raises(CalibrationError, match="9 or more"):
        fitted.require(0.02)
