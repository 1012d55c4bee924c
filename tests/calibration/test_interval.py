import numpy as np
import pytest

from causalmad.calibration.conformal import Conformal
from causalmad.calibration.interval import beta_binomial_interval
from causalmad.errors import CalibrationError
from tests.twins import conformal as twin


@pytest.mark.parametrize(("n", "m", "alpha", "k"), [(99, 200, 0.29, 29), (200, 300, 0.05, 10), (19, 50, 0.05, 1)])
@pytest.mark.parametrize("level", [0.9, 0.99])
def test_leaves_out_no_more_than_its_tails(n, m, alpha, k, level):
    law = twin.share_flagged_law(n, m, k)
    lo, hi = (round(share * m) for share in beta_binomial_interval(n, m, alpha, level))
    tail = (1 - level) / 2
    assert sum(law[:lo]) <= tail and sum(law[hi + 1 :]) <= tail
    assert sum(law[: lo + 1]) > tail - 1e-9 and sum(law[hi:]) > tail - 1e-9  # and is no wider than that


def test_holds_the_share_that_a_conformal_test_flags():
    random = np.random.default_rng(0)
    n, m, alpha = 150, 100, 0.05
    lo, hi = beta_binomial_interval(n, m, alpha, level=0.9)
    shares = []
    for _ in range(3000):
        fitted = Conformal().fit(random.normal(size=n))
        shares.append((fitted.p_values(random.normal(size=m)) <= alpha).mean())
    inside = np.mean([lo <= share <= hi for share in shares])
    assert 0.9 - 0.02 < inside < 0.97
    assert abs(np.mean(shares) - 7 / 151) < 0.002


def test_out_of_range_is_named():
    with pytest.raises(CalibrationError, match="at least 99 calibration inputs"):
        beta_binomial_interval(50, 100, 0.01)
    with pytest.raises(CalibrationError, match="n_test"):
        beta_binomial_interval(50, 0, 0.1)
    with pytest.raises(CalibrationError, match="level"):
        beta_binomial_interval(50, 10, 0.1, level=1)
    with pytest.raises(CalibrationError, match="alpha=0"):
        beta_binomial_interval(50, 10, 0)
