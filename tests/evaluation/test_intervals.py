"""Intervals over model seeds hold what they should, in simulations."""

import math

import numpy as np
import pytest
from scipy.stats import norm, t

from causalmad.errors import InputsError
from causalmad.evaluation import auroc
from causalmad.evaluation.bootstrap import bootstrap_interval
from causalmad.evaluation.intervals import auroc_interval, share_interval
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
