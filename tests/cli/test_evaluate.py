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


def test_a_detector_by_its_name(run, stub) -> None:
    base = ("evaluate", "--task", "stub[trusted=60]", "--seeds", 1, "--json", "-", "--detector")
    done = run(*base, "activations-neighbours")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["detector"] == "activations+nearest-neighbours"


def test_a_bench_of_chosen_detectors_and_tasks(run, tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("causalmad.evaluation.bench.bench", lambda suite, *_, **__: asked.append(suite) or _Board())
    base = ("bench", "--out", tmp_path, "--task", "gate-digits", "--detector", "activations", "--seeds", 1)
    done = run(*base, "--detector", "sparse-code[k=4]+mahalanobis", "--json", "-")
    assert done.exit_code == 0, done.stderr
    (suite,) = asked
    assert suite.tasks == ("gate-digits",) and suite.seeds == 1
    assert suite.detectors == {
        "activations": "activations+mahalanobis",
        "sparse-code[k=4]+mahalanobis": "sparse-code[k=4]+mahalanobis",
    }
    for option, wrong, said in (("--task", "gate-digit", "gate-digits"), ("--detector", "activation", "activations")):
        refused = run(*base, option, wrong)
        assert refused.exit_code == 2 and said in refused.stderr
    assert len(asked) == 1


class _Board:
    """A leaderboard of nothing."""

    def to_data(self) -> dict[str, object]:
        return {}


@pytest.mark.slow
def test_the_demonstration(run, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("demo", "--json", "demo.json")
    assert done.exit_code == 0, done.stderr
    assert "report.html" in done.stdout
    data = json.loads((tmp_path / "demo.json").read_text())
    assert data["report"] == "report.html" and len(data["detectors"]) == 2
    page = (tmp_path / "report.html").read_text()
    assert data["task"] in page and "resampling-profile" in page
    monkeypatch.setattr("causalmad.cli.reports.find_spec", lambda name: None)
    again = run("demo", "--report", "again.html")
    assert again.exit_code == 0 and "pip install 'causalmad[report]'" in again.stderr
    assert not (tmp_path / "again.html").exists()
    for said in ("resampling-profile+mahalanobis", "activations+mahalanobis", "output-confidence", "Why input", "sum"):
        assert said in done.stdout
