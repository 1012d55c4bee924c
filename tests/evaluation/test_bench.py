"""Bench runs what is missing, keeps what is there, and says what did not apply."""

import json
from concurrent.futures import Future

import pytest

import causalmad.evaluation.bench as bench_module
from causalmad.errors import CausalmadError, SpecError, TaskError
from causalmad.evaluation.bench import Job, bench, logs_of, run
from causalmad.evaluation.logs import Log, place
from causalmad.evaluation.suites import SUITES, Suite, suite
from causalmad.names import parse_detector
from tests.stub_task import Stub

DETECTORS = {"plain": "activations+mahalanobis", "paths": "path-patching+mahalanobis"}
SMALL = Suite("small", ("stub",), DETECTORS, 2)


@pytest.fixture
def stubbed(monkeypatch):
    monkeypatch.setattr(bench_module, "parse_spec", lambda kind, text: Stub())


def inline(jobs):
    """A pool that runs at once, in this process, and keeps what it was given."""

    class Inline:
        def __init__(self, *args, **kwargs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *args):
            return None

        def submit(self, function, job):
            jobs.append(job)
            done = Future()
            try:
                done.set_result(function(job))
            except CausalmadError as error:
                done.set_exception(error)
            return done

    return Inline


def test_a_job_logs_every_run_and_the_refusals(tmp_path, stubbed):
    run(Job(tmp_path, "stub", 0, tuple(DETECTORS.items())))
    plain, paths = (Log.read(place(tmp_path, "stub", name, 0)) for name in DETECTORS)
    assert plain.refused is None and plain.auroc > 0.9
    assert "edges" in paths.refused
    assert plain.content["result"]["controls"]["input-skyline"] > 0.9


def test_only_what_is_missing_or_damaged_is_run_again(tmp_path, stubbed, monkeypatch):
    for seed in range(2):
        run(Job(tmp_path, "stub", seed, tuple(DETECTORS.items())))
    damaged = place(tmp_path, "stub", "plain", 1)
    whole = damaged.read_text()
    damaged.write_text(whole[:100])
    kept = place(tmp_path, "stub", "plain", 0).stat().st_mtime_ns
    jobs = []

    monkeypatch.setattr(bench_module, "workers", inline(jobs))
    seen = []
    board = bench(SMALL, tmp_path, progress=lambda what, done, total: seen.append((done, total)))
    assert [(job.seed, job.detectors) for job in jobs] == [(1, (("plain", DETECTORS["plain"]),))]
    assert seen[-1] == (1, 1)
    assert place(tmp_path, "stub", "plain", 0).stat().st_mtime_ns == kept
    assert json.loads(damaged.read_text())["scores"] == json.loads(whole)["scores"]
    data = json.loads((tmp_path / "leaderboard.json").read_text())
    assert data == json.loads(json.dumps(board.to_data()))
    assert data["detectors"]["plain"]["tasks"]["stub"]["seeds"] == 2
    assert {path.suffix for path in tmp_path.glob("leaderboard.*")} == {".json", ".csv", ".md"}
    assert len(logs_of(SMALL, tmp_path)) == 4
    bench(SMALL, tmp_path)
    assert len(jobs) == 1


def test_a_task_that_cannot_be_made_stops_no_other(tmp_path, monkeypatch):
    class Unlucky(Stub):
        def load(self, seed=0, *, progress=None):
            if seed == 0:
                raise TaskError("the model learns nothing")
            return super().load(seed)

    monkeypatch.setattr(bench_module, "parse_spec", lambda kind, text: Unlucky() if text == "unlucky" else Stub())
    jobs = []
    monkeypatch.setattr(bench_module, "workers", inline(jobs))
    both = Suite("both", ("unlucky", "stub"), {"plain": DETECTORS["plain"]}, 2)
    with pytest.raises(
        TaskError, match=r"1 of 4 tasks could not be run.*unlucky, seed 0: TaskError: the model learns nothing"
    ):
        bench(both, tmp_path)
    assert len(jobs) == 4
    assert sum(path.suffix == ".json" for path in tmp_path.glob("logs/*/*")) == 3
    assert not (tmp_path / "leaderboard.json").exists()


@pytest.mark.parametrize("name", SUITES)
def test_suites_name_what_exists(name):
    from causalmad.config import parse_spec

    for task in suite(name).tasks:
        parse_spec("tasks", task)
    for text in suite(name).detectors.values():
        parse_detector(text)


def test_an_unknown_suite_is_named():
    with pytest.raises(SpecError, match="core"):
        suite("cora")


def test_a_log_of_another_detector_or_version_is_run_again(tmp_path, stubbed, monkeypatch):
    run(Job(tmp_path, "stub", 0, (("mine", "activations+nearest-neighbours"),)))
    jobs = []
    monkeypatch.setattr(bench_module, "workers", inline(jobs))
    mine = Suite("mine", ("stub",), {"mine": "activations+mahalanobis"}, 1)
    bench(mine, tmp_path)
    assert len(jobs) == 1
    bench(mine, tmp_path)
    assert len(jobs) == 1
    monkeypatch.setattr(Stub, "version", "2")
    bench(mine, tmp_path)
    assert len(jobs) == 2


def test_a_suite_in_part_says_how_it_was_made():
    whole = suite("quick")
    assert whole.narrowed() == whole
    some = whole.narrowed(["skip-trigram[null=true]", "gate-digits"], {"sparse-code+mahalanobis": "x+y"}, 3)
    assert (some.tasks, some.seeds) == (("skip-trigram[null=true]", "gate-digits"), 3)
    assert some.detectors == {"sparse-code+mahalanobis": "x+y"}
    assert some.name == (
        "quick --task 'skip-trigram[null=true]' --task gate-digits --detector sparse-code+mahalanobis --seeds 3"
    )
    assert whole.narrowed(seeds=1).tasks == whole.tasks
