import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as draws
from scipy.stats import cauchy

from causalmad.errors import FitError, StoreError
from causalmad.references.base import ExplainedReference
from causalmad.references.empirical_tails import EmpiricalTails
from tests.references.pools import restores, rows, stands_alone
from tests.twins import empirical_tails as twin


@pytest.mark.parametrize("two_sided", [True, False])
@pytest.mark.parametrize("n", [2, 7, 60])
def test_equals_its_slow_twin(n, two_sided):
    trusted = rows(n)
    new = np.r_[rows(9, seed=1), trusted[:3], 5 * rows(3, seed=2)]
    found = -EmpiricalTails(two_sided).fit(trusted).score_samples(new)
    np.testing.assert_allclose(found, twin.scores(trusted, new, two_sided), rtol=1e-7)


def test_ties_count_against_flagging():
    trusted = np.array([[0.0], [1], [1], [1], [2]])
    tails = EmpiricalTails(two_sided=False).fit(trusted).tail_probabilities([[0.0], [0.5], [1.0], [1.5], [2.0]])
    np.testing.assert_allclose(tails[:, 0], [1, 5 / 6, 5 / 6, 2 / 6, 2 / 6])


def test_tail_probabilities_of_fresh_rows_are_valid():
    draw = np.random.default_rng(0)
    trusted, new = draw.standard_cauchy((20_000, 10)), draw.standard_cauchy((20_000, 10))
    tails = EmpiricalTails().fit(trusted).tail_probabilities(new)
    for level in (0.01, 0.1, 0.5):
        assert abs((tails <= level).mean() - level) < 0.1 * level


def test_the_score_is_the_statistic_of_the_cauchy_combination():
    trusted, new = rows(), rows(30, seed=1)
    fitted = EmpiricalTails().fit(trusted)
    p = np.minimum(fitted.tail_probabilities(new), 1 - 1 / 61)
    np.testing.assert_allclose(-fitted.score_samples(new), cauchy.isf(p).mean(axis=1), rtol=1e-9)


@settings(max_examples=50, deadline=None)
@for_all(
    column=draws.integers(0, 4),
    steps=draws.lists(draws.integers(-60, 240).map(lambda k: 10 ** (k / 20)), min_size=2, max_size=6, unique=True),
    side=draws.sampled_from([-1, 1]),
)
def test_beyond_the_range_farther_is_more_anomalous(column, steps, side):
    trusted = rows()
    new = np.repeat(np.median(trusted, axis=0)[None], len(steps), axis=0)
    end = trusted[:, column].max() if side == 1 else trusted[:, column].min()
    new[:, column] = end + side * np.sort(steps) * trusted[:, column].std()
    scores = -EmpiricalTails().fit(trusted).score_samples(new)
    assert np.isfinite(scores).all() and (np.diff(scores) > 0).all()


def test_inside_the_range_nothing_is_extrapolated():
    trusted = rows()
    fitted = EmpiricalTails().fit(trusted)
    ends = np.stack([trusted.min(axis=0), trusted.max(axis=0)])
    np.testing.assert_allclose(fitted.tail_probabilities(ends), 2 * 2 / 61)  # the end itself counts


def test_a_constant_column_is_left_by_more_than_rounding():
    trusted = np.c_[rows(), np.full(60, 0.1)].astype(np.float32)
    new = np.c_[rows(4, seed=1), np.full(4, np.float32(0.1))]
    new[1, 5] = np.nextafter(np.float32(0.1), np.float32(1))
    new[2:, 5] += [0.01, 0.1]
    terms = EmpiricalTails().fit(trusted).contributions(new)[:, 5]
    assert terms[0] == terms[1] < 0 < terms[2] < terms[3]


def test_contributions_rows_and_state():
    new = rows(20, seed=3) * 2
    for spec in (EmpiricalTails(), EmpiricalTails(two_sided=False)):
        fitted = spec.fit(rows())
        assert isinstance(fitted, ExplainedReference)
        np.testing.assert_allclose(fitted.contributions(new).sum(axis=1), -fitted.score_samples(new), rtol=1e-12)
        assert stands_alone(fitted, new) and restores(spec, fitted, new)
    with pytest.raises(StoreError, match="upper"):
        spec.restore({**fitted.state(), "upper": -fitted.upper})


def test_low_values_are_odd_in_the_two_sided_form_only():
    trusted = rows()
    low = trusted.min(axis=0, keepdims=True) - 3 * trusted.std(axis=0)
    usual = np.median(trusted, axis=0)[None]
    two, one = EmpiricalTails().fit(trusted), EmpiricalTails(two_sided=False).fit(trusted)
    assert two.score_samples(low) < two.score_samples(usual) and one.score_samples(low) > one.score_samples(usual)


def test_too_few_rows_is_an_error():
    with pytest.raises(FitError, match="got 1 trusted row"):
        EmpiricalTails().fit(rows(1))
