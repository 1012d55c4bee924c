"""Leaderboards and comparisons against what can be counted by hand."""

import csv
import io
import json

import numpy as np
import pytest

from causalmad.errors import StoreError
from causalmad.evaluation import auroc
from causalmad.evaluation.bootstrap import Scored, bootstrap_interval
from causalmad.evaluation.choosing import best_of, choose, leave_one_task_out
from causalmad.evaluation.comparing import compare
from causalmad.evaluation.leaderboard import Leaderboard
from causalmad.evaluation.logs import Log
from tests.evaluation.logged import made_up, suite

GAPS = {
    "even": {"a": 1.5, "b": 1.5, "c": 1.5},
    "peaked": {"a": 4.0, "b": 4.0, "c": 0.0},
    "weak": {"a": 0.5, "b": 0.5, "c": 0.5},
}


def test_standings_are_means_over_seeds_and_the_worst_task_leads():
    logs = suite(GAPS)
    board = Leaderboard.of(logs, "made up")
    assert board.order == ("even", "weak", "peaked")
    for detector, tasks in GAPS.items():
        means = {t: np.mean([log.auroc for log in logs if (log.detector, log.task) == (detector, t)]) for t in tasks}
        assert board.mean(detector) == pytest.approx(np.mean(list(means.values())))
        assert board.worst(detector) == (min(means, key=means.get), pytest.approx(min(means.values())))
    data = json.loads(json.dumps(board.to_data()))
    assert list(data["detectors"]["even"]) >= ["mean_auroc", "worst_auroc", "worst_task", "tasks"]
    low, high = data["detectors"]["even"]["tasks"]["a"]["ci95"]
    assert low < data["detectors"]["even"]["tasks"]["a"]["auroc"] < high
    rows = list(csv.DictReader(io.StringIO(board.to_csv())))
    assert len(rows) == 9
    assert rows[0]["fpr_at_0.05"] == "0.04"
    assert "`even`" in board.to_markdown()


def test_what_a_detector_refused_is_said_and_puts_it_last():
    refused = Log("c", "even", 0, {**made_up("c", "even", 0, 0).content, "refused": "no blocks"})
    logs = [log for log in suite(GAPS, 1) if (log.detector, log.task) != ("even", "c")]
    board = Leaderboard.of([*logs, refused])
    assert board.order[-1] == "even"
    assert board.to_data()["detectors"]["even"]["refused"] == {"c": "no blocks"}


def test_logs_of_other_models_are_not_mixed():
    logs = suite(GAPS, 1)
    other = Log("a", "new", 0, {**logs[0].content, "fingerprints": {"model": "another"}})
    with pytest.raises(StoreError, match="different models"):
        Leaderboard.of([*logs, other])
    with pytest.raises(StoreError, match="twice"):
        Leaderboard.of([*logs, logs[0]])


def test_bootstrap_equals_resampling_rows_by_hand():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2 == 0
    one = Scored(labels, labels + rng.standard_normal(60).round(1))
    draws = []
    for _ in range(3000):
        odd, normal = (rng.choice(one.scores[labels == kind], 30) for kind in (True, False))
        draws.append(auroc([1] * 30 + [0] * 30, np.concatenate([odd, normal])))
    np.testing.assert_allclose(bootstrap_interval(one, draws=3000), np.percentile(draws, [2.5, 97.5]), atol=0.015)


def test_the_interval_covers_the_truth():
    truth = 0.7602  # Phi(1 / sqrt(2))
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        labels = np.arange(100) % 2 == 0
        low, high = bootstrap_interval(Scored(labels, labels + rng.standard_normal(100)), draws=300)
        held += low <= truth <= high
    assert held >= 88  # 95 expected; 88 has a chance of 0.4 %


def test_pairing_cancels_what_both_find_hard():
    logs = suite({"x": {"a": 1.0}, "y": {"a": 1.15}})
    found = compare(logs, "y", "x")
    (_, _, (low, high)) = found.tasks["a"]
    assert 0 < low < high  # a gap of 0.03, of which single intervals of width 0.1 show nothing
    assert found.mean[1][0] > 0
    json.dumps(found.to_data())


def test_comparing_a_detector_with_itself_gives_nothing():
    found = compare(suite(GAPS), "even", "even")
    assert found.mean == (0, (0, 0)) and all(span == (0, 0) for _, _, span in found.tasks.values())
    value, (low, high) = found.worst  # three tasks are nearly tied, and each might be the worst one of either
    assert value == 0 and low == -high and high < 0.1


def test_unknown_detectors_and_unlike_inputs_are_named():
    logs = suite(GAPS, 1)
    with pytest.raises(StoreError, match="even"):
        compare(logs, "evn", "weak")
    moved = Log("a", "moved", 0, {**logs[0].content, "ids": [f"other {i}" for i in range(120)]})
    with pytest.raises(StoreError, match="other inputs"):
        compare([*logs, moved], "moved", "even")
    labels = (1 - np.array(logs[0].content["labels"])).tolist()
    flipped = Log("a", "flipped", 0, {**logs[0].content, "labels": labels})
    with pytest.raises(StoreError, match="labels"):
        compare([*logs, flipped], "flipped", "even")


def test_the_choice_never_sees_the_task_it_is_judged_on():
    chosen = leave_one_task_out(suite(GAPS), list(GAPS))
    # Without c, the peaked detector is best on its worst task; with c in view it never is.
    assert chosen == {"a": "even", "b": "even", "c": "peaked"}


def test_the_runs_of_the_choice_are_those_of_the_candidate_chosen_without_the_task():
    logs = suite(GAPS)
    choice = choose(logs, list(GAPS))
    assert choice.best == best_of(logs, list(GAPS)) == "even"
    assert {(log.task, log.content["chosen"]) for log in choice.logs} == {("a", "even"), ("b", "even"), ("c", "peaked")}
    board = Leaderboard.of([*logs, *choice.logs])
    assert board.standings["recommended"]["c"].auroc == board.standings["peaked"]["c"].auroc
    assert len(choice.logs) == 15 and choice.against is None
    assert "Without `c` it would be `peaked`" in choice.to_markdown()


def test_the_choice_is_compared_with_the_baseline_on_the_same_inputs():
    logs = suite({**GAPS, "activations": dict.fromkeys("abc", 0.2)})
    choice = choose(logs, ["even", "peaked"])
    value, (low, high) = choice.against.mean
    assert 0 < low < value < high
    assert f"in the mean {value:+.3f}" in choice.to_markdown()
    json.dumps(choice.to_data())


def test_null_tasks_count_neither_for_the_worst_task_nor_for_the_choice():
    null = [made_up("n", name, seed, 0.0, null=True) for name in GAPS for seed in range(5)]
    board, without = Leaderboard.of([*suite(GAPS), *null]), Leaderboard.of(suite(GAPS))
    assert board.nulls == {"n"}
    for name in GAPS:
        assert board.worst(name) == without.worst(name) and board.mean(name) == without.mean(name)
        low, high = board.standings[name]["n"].ci95
        assert low < 0.5 < high
    assert leave_one_task_out([*suite(GAPS), *null], list(GAPS)) == leave_one_task_out(suite(GAPS), list(GAPS))
    assert "n" not in compare([*suite(GAPS), *null], "even", "weak").tasks
    assert "## Null tasks" in board.to_markdown() and "## Null tasks" not in without.to_markdown()


def test_shares_of_flagged_normals_are_held_to_their_interval_where_one_is_promised():
    plain = [made_up("a", "even", seed, 1.0) for seed in range(4)]
    plain[0].content["result"]["fpr_at_alpha"]["0.05"] = 0.2
    shifted = [made_up("b", "even", seed, 1.0, shift=True) for seed in range(4)]
    board = Leaderboard.of([*plain, *shifted])
    assert board.standings["even"]["a"].outside == (1, 4)  # alpha = 0.01 is out of reach and has no interval
    assert board.standings["even"]["b"].outside is None
    assert "| `even` | 0.080 | 1 of 4 | 0.040 |" in board.to_markdown()


def test_a_task_that_nobody_solves_does_not_choose_by_its_noise():
    hopeless = {"good": 0.0, "lucky": 0.02}
    gaps = {name: {"a": 3.0 if name == "good" else 2.0, "b": 3.0, "n": gap} for name, gap in hopeless.items()}
    logs = suite(gaps)
    board = Leaderboard.of(logs)
    assert board.worst("lucky")[1] > board.worst("good")[1]  # by less than its interval
    assert best_of(logs, list(gaps)) == "good"
    # A worst task that differs beyond chance still leads, whatever the means.
    clear = suite({"good": gaps["good"], "sturdy": {"a": 1.5, "b": 1.5, "n": 1.5}})
    assert best_of(clear, ["good", "sturdy"]) == "sturdy"


def test_versions_of_a_task_do_not_choose_for_each_other():
    gaps = {"steady": {"a": 1.0, "a[shift=true]": 1.0, "b": 1.0}, "peaked": {"a": 0.2, "a[shift=true]": 0.2, "b": 3.0}}
    chosen = leave_one_task_out(suite(gaps), list(gaps))
    assert chosen == {"a": "peaked", "a[shift=true]": "peaked", "b": "steady"}


def test_a_candidate_that_refused_a_single_seed_is_none():
    logs = suite({"flaky": {"a": 3.0, "b": 3.0}, "plain": {"a": 1.0, "b": 1.0}}, 3)
    refused = Log("b", "flaky", 2, {**made_up("b", "flaky", 2, 0).content, "refused": "no blocks"})
    kept = [log for log in logs if (log.detector, log.task, log.seed) != ("flaky", "b", 2)]
    assert best_of([*kept, refused], ["flaky", "plain"]) == "plain"
