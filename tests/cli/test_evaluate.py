"""evaluate on a stub task, and the demonstration for real."""

from __future__ import annotations

import json

import pytest


def test_json_and_tables(run, stub, tmp_path) -> None:
    path = tmp_path / "new" / "result.json"
    base = ("evaluate", "--task", "stub[shift=3]", "--detector", "activations+mahalanobis", "--seeds", 2)
    done = run(*base, "--json", path)
    assert done.exit_code == 0, done.stderr
    data = json.loads(path.read_text())
    assert (data["task"], data["detector"]) == ("stub[shift=3]", "activations+mahalanobis")
    assert [row["seed"] for row in data["seeds"]] == [0, 1]
    low, high = data["auroc"]["ci95"]
    assert low <= data["auroc"]["mean"] <= high
    assert "activations+mahalanobis on stub[shift=3]" in done.stdout and "output-confidence" in done.stdout
    again = json.loads(run(*base, "--json", "-").stdout)
    assert [row["auroc"] for row in again["seeds"]] == [row["auroc"] for row in data["seeds"]]


def test_an_alpha_out_of_reach_shows(run, stub) -> None:
    done = run("evaluate", "--task", "stub[trusted=60]", "--detector", "activations+mahalanobis", "--seeds", 1)
    assert done.exit_code == 0
    assert "alpha=0.01 can never flag anything" in done.stdout


@pytest.mark.slow
def test_the_demonstration(run) -> None:
    done = run("demo")
    assert done.exit_code == 0, done.stderr
    for said in ("resampling-profile+mahalanobis", "activations+mahalanobis", "output-confidence", "Why input", "sum"):
        assert said in done.stdout
