"""Guarantees by simulation: what is promised of false flags, false discoveries and false alarms holds."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from causalmad.calibration import CalibrationConditional, Conformal, CrossConformal, Mondrian, Weighted, reject
from causalmad.calibration.martingale import log_capitals

ALPHAS = (0.01, 0.05, 0.1)
QUICK = 150
sizes = pytest.mark.parametrize("splits", [QUICK, pytest.param(1000, marks=pytest.mark.slow)])


def shares(spec, splits, per_split=20, n=200, **options):
    """(splits, alphas) shares of normal inputs flagged, with trusted scores that depend on a stratum and are tied."""
    draw = np.random.default_rng(5)
    found = []
    for _ in range(splits):
        kind = draw.integers(0, 2, n + per_split)
        scores = (draw.normal(size=n + per_split) * (1 + 3 * kind)).round(1)
        names = getattr(spec, "asks", ())
        rows = [dict.fromkeys(names, kind[part]) for part in (slice(n), slice(n, None))]
        given = [{"covariates": row} if names else {} for row in rows]
        extra = {"untrusted": dict.fromkeys(names, kind[::2])} if isinstance(spec, Weighted) else {}
        p = spec.fit(scores[:n], **given[0], **extra).p_values(scores[n:], **given[1])
        found.append([(p <= alpha).mean() for alpha in ALPHAS])
    return np.array(found)


@sizes
@pytest.mark.parametrize(
    "spec", [Conformal(), CalibrationConditional(), Mondrian("class"), Weighted(("class",))], ids=str
)
def test_no_more_than_alpha_is_flagged_on_average_over_splits(spec, splits):
    found = shares(spec, splits)
    means, errors = found.mean(axis=0), found.std(axis=0, ddof=1) / math.sqrt(splits)
    for alpha, mean, error in zip(ALPHAS, means, errors, strict=True):
        assert mean <= alpha + 4 * max(error, math.sqrt(alpha / (20 * splits)))


@sizes
def test_within_every_stratum_mondrian_flags_alpha_where_plain_p_values_do_not(splits):
    draw = np.random.default_rng(6)
    found = []
    for _ in range(splits):
        kind = draw.integers(0, 2, 300)
        scores = draw.normal(size=300) * (1 + 3 * kind)
        held, new = {"class": kind[:200]}, {"class": kind[200:]}
        wide = kind[200:] == 1
        plain = Conformal().fit(scores[:200]).p_values(scores[200:])[wide]
        own = Mondrian().fit(scores[:200], covariates=held).p_values(scores[200:], covariates=new)[wide]
        found.append([(plain <= 0.05).mean(), (own <= 0.05).mean()])
    plain, own = np.mean(found, axis=0)
    assert plain > 0.07 and own <= 0.05 + 4 * np.std(found, axis=0)[1] / math.sqrt(splits)


@sizes
@pytest.mark.parametrize("method", ["monte-carlo", "simes"])
def test_given_the_calibration_scores_no_more_than_alpha_is_flagged_but_for_delta(method, splits):
    """The share of all normal inputs that is flagged is known exactly: scores are normal numbers."""
    draw = np.random.default_rng(7)
    broken = 0
    for _ in range(splits):
        fitted = CalibrationConditional(method, delta=0.1).fit(draw.normal(size=150))
        levels = fitted.bounds[:-1]
        flagged = norm.sf(fitted.scores[::-1])  # {p <= b_k} is {score above the k-th largest}
        broken += bool((flagged > levels).any())
    assert broken <= binom.ppf(0.999, splits, 0.1)


@sizes
def test_cross_conformal_keeps_within_twice_alpha(splits):
    """The mean of the other folds is the reference, the distance from it the score."""
    draw = np.random.default_rng(8)
    folds, found = np.arange(40) % 5, []
    for _ in range(splits):
        rows = draw.normal(size=(60, 3))
        centres = [rows[:40][folds != fold].mean(axis=0) for fold in range(5)]
        table = np.stack([((rows - centre) ** 2).sum(axis=1) for centre in centres], axis=1)
        fitted = CrossConformal(5).fit(table[np.arange(40), folds], folds=folds)
        found.append([(fitted.p_values(table[40:]) <= alpha).mean() for alpha in (0.05, 0.1)])
    for alpha, mean, spread in zip((0.05, 0.1), np.mean(found, axis=0), np.std(found, axis=0), strict=True):
        assert mean <= 2 * alpha
        assert mean <= alpha + 4 * spread / math.sqrt(splits)  # as in practice


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_tied_lists_with_strata_exhaustively(size):
    """Every list of tied scores in two strata: within each stratum every input is as likely to be the new one."""
    for scores in itertools.product((0.0, 1.0), repeat=size):
        for labels in itertools.product((0, 1), repeat=size):
            p: dict[int, list[float]] = {0: [], 1: []}
            for i in range(size):
                rest = np.delete(labels, i)
                if labels[i] in rest:
                    fitted = Mondrian().fit(np.delete(scores, i), covariates={"class": rest})
                    p[labels[i]] += fitted.p_values([scores[i]], covariates={"class": [labels[i]]}).tolist()
            for values in filter(None, p.values()):
                for alpha in (0.2, 0.25, 1 / 3, 0.4, 0.5, 0.6, 0.75):
                    assert np.mean(np.array(values) <= alpha + 1e-12) <= alpha + 1e-9


def false_discoveries(p_of, method, splits, q=0.1):
    draw = np.random.default_rng(9)
    found = []
    for _ in range(splits):
        p, anomalous = p_of(draw)
        flags = reject(p, q, method)
        found.append((flags & ~anomalous).sum() / max(flags.sum(), 1))
    return np.mean(found), np.std(found) / math.sqrt(splits)


def shared_calibration(draw):
    anomalous = np.arange(100) < 20
    scores = draw.normal(size=100) + 3.5 * anomalous
    return Conformal().fit(draw.normal(size=400)).p_values(scores), anomalous


def equicorrelated(draw):
    """Normal inputs that go up and down together."""
    anomalous = np.arange(60) < 6
    return norm.sf(0.9 * draw.normal() + math.sqrt(1 - 0.81) * draw.normal(size=60) + 4 * anomalous), anomalous


def opposed(draw):
    """Pairs of p-values p and 1 - p, which are negatively dependent."""
    half = draw.random(30)
    return np.concatenate([half, 1 - half]), np.zeros(60, dtype=bool)


@sizes
@pytest.mark.parametrize("method", ["bh", "storey", "e-bh", "by"])
def test_false_discoveries_with_a_shared_calibration_set(method, splits):
    mean, error = false_discoveries(shared_calibration, method, 2 * splits)
    assert mean <= 0.1 + 4 * error


@sizes
@pytest.mark.parametrize("law", [equicorrelated, opposed])
@pytest.mark.parametrize("method", ["e-bh", "by"])
def test_false_discoveries_under_any_dependence(method, law, splits):
    mean, error = false_discoveries(law, method, 4 * splits)
    assert mean <= 0.1 + 4 * error


def alarms(runs, steps, alarm=0.1):
    """How many streams of normal inputs ever raise an alarm, each with its own calibration set."""
    draw = np.random.default_rng(10)
    count = 0
    for _ in range(runs):
        valid = Conformal().fit(draw.normal(size=300)).conditional(alarm / 2)
        count += bool(log_capitals(valid.p_values(draw.normal(size=steps))).max() >= math.log(2 / alarm))
    return count


@pytest.mark.parametrize(("runs", "steps"), [(20, 500), pytest.param(60, 10_000, marks=pytest.mark.slow)])
def test_normal_streams_hardly_ever_raise_an_alarm(runs, steps):
    assert alarms(runs, steps) <= binom.ppf(0.999, runs, 0.1)


@pytest.mark.slow
def test_plain_p_values_would_raise_false_alarms_on_long_streams():
    """Why calibration-conditional ones are taken: a small calibration set is a little too low in one of many cases."""
    draw = np.random.default_rng(11)
    runs, count = 40, 0
    for _ in range(runs):
        p = Conformal().fit(draw.normal(size=100)).p_values(draw.normal(size=10_000))
        count += bool(log_capitals(p).max() >= math.log(20))
    assert count > binom.ppf(0.999, runs, 0.05)
