"""Metrics against plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as draws

from causalmad.errors import InputsError
from causalmad.evaluation import auroc, average_precision, interval95, tpr_at_fpr

SCORED = draws.lists(draws.tuples(draws.booleans(), draws.integers(-5, 5)), min_size=2, max_size=40).filter(
    lambda rows: 0 < sum(label for label, _ in rows) < len(rows)
)


def columns(rows: list[tuple[bool, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([label for label, _ in rows]), np.array([score for _, score in rows], dtype=float)


@for_all(SCORED)
def test_auroc_is_the_share_of_pairs_in_order(rows: list[tuple[bool, int]]) -> None:
    labels, scores = columns(rows)
    odd, normal = scores[labels][:, None], scores[~labels][None]
    assert auroc(labels, scores) == pytest.approx(((odd > normal) + 0.5 * (odd == normal)).mean())


@for_all(SCORED, draws.sampled_from([0.0, 0.01, 0.05, 0.3, 1.0]))
def test_tpr_at_fpr_is_the_best_threshold_that_is_allowed(rows: list[tuple[bool, int]], limit: float) -> None:
    labels, scores = columns(rows)
    best = 0.0
    for threshold in [*np.unique(scores), np.inf]:
        if (scores[~labels] >= threshold).mean() <= limit:
            best = max(best, float((scores[labels] >= threshold).mean()))
    assert tpr_at_fpr(labels, scores, limit) == pytest.approx(best)


@for_all(SCORED)
def test_average_precision_is_a_sum_of_steps(rows: list[tuple[bool, int]]) -> None:
    labels, scores = columns(rows)
    total, recall = 0.0, 0.0
    for threshold in np.unique(scores)[::-1]:
        above = scores >= threshold
        new = (above & labels).sum() / labels.sum()
        total += (new - recall) * labels[above].mean()
        recall = new
    assert average_precision(labels, scores) == pytest.approx(total)


def test_interval_is_students() -> None:
    values = [0.9, 0.95, 0.97, 0.99, 0.94]
    half = 2.7764451052 * np.std(values, ddof=1) / math.sqrt(5)  # the 0.975 quantile at 4 degrees of freedom
    assert interval95(values) == pytest.approx((np.mean(values) - half, np.mean(values) + half))


def test_interval_holds_the_mean_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    held = [low <= 2 <= high for low, high in (interval95(draw.normal(2, 3, 5)) for _ in range(2000))]
    assert 0.935 < np.mean(held) < 0.965


def test_one_value_has_no_interval() -> None:
    assert all(math.isnan(end) for end in interval95([0.5]))
    with pytest.raises(InputsError):
        interval95([])


@pytest.mark.parametrize(
    ("labels", "scores"),
    [([True, False], [1.0]), ([True, True], [1.0, 2.0]), ([True, False], [1.0, math.nan]), ([0, 2], [1.0, 2.0])],
)
@pytest.mark.parametrize("metric", [auroc, average_precision, lambda y, s: tpr_at_fpr(y, s, 0.05)])
def test_nonsense_is_refused(metric, labels, scores) -> None:
    with pytest.raises(InputsError):
        metric(labels, scores)
