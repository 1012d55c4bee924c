"""Intervals over model seeds hold what they should, in simulations."""

import math

import numpy as np
import pytest
from scipy.stats import norm, t

from causalmad.errors import InputsError
from causalmad.evaluation import auroc
from causalmad.evaluation.bootstrap import bootstrap_interval
from causalmad.evaluation.intervals import Measured, auroc_interval, mean_gap, share_interval, worse, worst_gap
from causalmad.evaluation.leaderboard import Leaderboard
from tests.evaluation.logged import made_up


def values(random, gap, spread, seeds, runs=1, count=60):
    """(runs, seeds) AUROCs of Gaussian scores; the gap between the kinds is another in each seed."""
    normal, odd = random.normal(size=(2, runs, seeds, count))
    odd = odd + gap + spread * random.normal(size=(runs, seeds, 1))
    return (odd[..., :, None] > normal[..., None, :]).mean((-2, -1))


def true_mean(gap, spread):
    """Of the AUROC over seeds."""
    at, weights = np.polynomial.hermite_e.hermegauss(60)
    return float((norm.cdf((gap + spread * at) / math.sqrt(2)) * weights).sum() / weights.sum())


@pytest.mark.parametrize(
    ("gap", "spread", "seeds", "least"),
    # In long simulations 0.94 to 0.95 and, at a mean of 0.995, 0.90; three standard deviations less.
    [(1.2, 0.0, 5, 0.91), (1.2, 0.6, 5, 0.91), (1.2, 0.6, 3, 0.91), (2.5, 0.6, 3, 0.91), (4.0, 0.6, 5, 0.85)],
)
def test_the_interval_of_a_mean_holds_it_with_few_seeds_that_differ(gap, spread, seeds, least):
    random, truth = np.random.default_rng([seeds, int(10 * gap)]), true_mean(gap, spread)
    ends = np.array([share_interval(each) for each in values(random, gap, spread, seeds, runs=400)])
    assert ((ends >= 0) & (ends <= 1)).all()
    held = ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean()
    assert held >= least, held


def test_the_interval_of_a_mean_is_students_where_the_scale_does_not_matter():
    """Between 0.4 and 0.6 log-odds are as good as straight."""
    (found,) = values(np.random.default_rng(0), 0.0, 0.0, 6, count=500)
    half = t.ppf(0.975, 5) * found.std(ddof=1) / math.sqrt(6)
    np.testing.assert_allclose(share_interval(found), (found.mean() - half, found.mean() + half), atol=3e-4)


def test_standings_have_the_interval_over_their_seeds():
    logs = [made_up("a", "even", seed, 1.5) for seed in range(5)]
    standing = Leaderboard.of(logs).standings["even"]["a"]
    assert standing.ci95 == auroc_interval([log.scored for log in logs]) == share_interval([log.auroc for log in logs])


def test_one_seed_tells_of_inputs_alone_and_seeds_that_agree_give_a_point():
    one = made_up("a", "even", 0, 1.0).scored
    assert auroc_interval([one]) == bootstrap_interval(one)
    same = auroc(one.labels, one.scores)
    assert auroc_interval([one] * 3) == pytest.approx((same, same))
    assert share_interval([1.0] * 5) == (1, 1)
    with pytest.raises(InputsError, match="no seeds"):
        auroc_interval([])
    with pytest.raises(InputsError, match="at least two"):
        share_interval([0.5])


def tasks(random, aurocs, seeds=5):
    """A detector with a given AUROC on each task."""
    gaps = math.sqrt(2) * norm.ppf(aurocs)
    return Measured(np.concatenate([values(random, gap, 0.0, seeds)[0][:, None] for gap in gaps], axis=1))


@pytest.mark.parametrize("count", [1, 5, 17])
@pytest.mark.parametrize("kinds", [("tied", "lone"), ("lone", "tied"), ("tied", "tied"), ("lone", "lone")])
def test_the_interval_of_worst_tasks_holds_their_difference_however_many_are_tied(kinds, count):
    """The percentiles of a bootstrap hold it in about half of the runs where 17 are tied with the worst."""
    random = np.random.default_rng(count)
    known = {"lone": [0.8, *[0.95] * (count - 1)], "tied": [0.8] * count}
    ends = [worst_gap(*(tasks(random, known[kind]) for kind in kinds)) for _ in range(200)]
    assert np.mean([low <= 0 <= high for low, high in ends]) >= 0.91  # 0.95 or more, less three standard deviations
    assert np.mean([high - low for low, high in ends]) < 0.4


def worst_below(first, second):
    """Slow and plain: what is below the worst of one minus the worst of another, from (seeds, tasks) AUROCs."""

    def below(values, level):
        return np.mean(values) - t.ppf(level, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))

    everywhere = range(first.shape[1])
    lowest = min(everywhere, key=lambda task: second[:, task].mean())
    near = [task for task in everywhere if below(second[:, task] - second[:, lowest], 0.975) <= 0]
    level = 1 - 0.025 / len(near)
    return max(min(below(first[:, task] - second[:, other], level) for task in everywhere) for other in near)


def test_differences_are_those_of_students_bounds_written_plainly():
    random = np.random.default_rng(3)
    for aurocs in ([0.7, 0.75, 0.9], [0.8, 0.8, 0.8], [0.6]):
        first, second = tasks(random, aurocs), tasks(random, aurocs[::-1], seeds=5)
        wanted = worst_below(first.values, second.values), -worst_below(second.values, first.values)
        assert worst_gap(first, second) == pytest.approx(wanted)
        gap = (first.values - second.values).mean(1)
        half = t.ppf(0.975, 4) * gap.std(ddof=1) / math.sqrt(5)
        assert mean_gap(first, second) == pytest.approx((gap.mean() - half, gap.mean() + half))
        assert worst_gap(first, second)[0] <= first.values.mean(0).min() - second.values.mean(0).min()


def test_one_worst_task_that_stands_alone_is_compared_in_pairs():
    random = np.random.default_rng(4)
    hard = 0.05 * random.normal(size=(5, 1))  # what both find hard, far more than the difference between them
    both = [Measured(np.array([0.6, 0.95]) + hard + 0.002 * random.normal(size=(5, 2))) for _ in range(2)]
    better = Measured(both[1].values + 0.01)
    low, high = worst_gap(better, both[0])
    assert 0 < low < high < 0.02
    assert worse(both[0], better) and not worse(better, both[0])


def test_a_single_seed_is_resampled_by_its_inputs():
    logs = {name: [[made_up(task, name, 0, 1.0).scored] for task in "abc"] for name in ("one", "other")}
    one, other = (Measured.of(found) for found in logs.values())
    assert one.values.shape == (1, 3) and len(one.draws) == len(other.draws) > 500
    for gap in (worst_gap, mean_gap):
        low, high = gap(one, other)
        assert -0.15 < low < 0 < high < 0.15
    uneven = Measured.of([logs["one"][0] * 5, logs["one"][1] * 2])
    assert uneven.values.shape == (2, 2) and uneven.draws is None
    assert uneven.values.mean(0) == pytest.approx(one.values[0, :2])
    with pytest.raises(InputsError, match="without seeds"):
        Measured.of([[], logs["one"][0]])


def test_the_ends_stay_between_minus_one_and_one():
    two = [Measured(np.array([[0.1, 0.9], [0.9, 0.1]])), Measured(np.array([[0.9, 0.8], [0.2, 0.1]]))]
    for gap in (worst_gap, mean_gap):
        assert gap(*two) == (-1, 1)
