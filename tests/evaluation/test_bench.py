"""Bench runs what is missing, keeps what is there, and says what did not apply."""

import dataclasses
import json
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch

import causalmad.evaluation.bench as bench_module
from causalmad.catalogue import catalogue
from causalmad.errors import CausalmadError, SpecError, TaskError
from causalmad.evaluation.bench import Job, bench, logs_of, run
from causalmad.evaluation.logs import Log, place
from causalmad.evaluation.suites import SUITES, Suite, headline, suite
from causalmad.names import parse_detector
from causalmad.tasks import FromFiles
from tests.conftest import build
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
    assert headline(some.name) == "chosen tasks and detectors"
    assert headline(whole.narrowed(["gate-digits"]).name) == "quick suite, in part"
    assert headline(whole.name) == "quick suite"


@pytest.fixture
def own(tmp_path):
    """A task from a folder and files, which may change, and functions that write them."""
    draw, folder = np.random.default_rng(0), tmp_path / "files"

    def model(scale=1.0):
        made = build("gpt2")
        with torch.no_grad():
            made.transformer.wte.weight.mul_(scale)
        made.save_pretrained(folder / "model")

    def write(part, count, low=1, **values):
        rows = [{"input_ids": draw.integers(low, low + 9, 6).tolist(), **values} for _ in range(count)]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / f"{part}.jsonl"

    model()
    trusted, normal = (str(write(part, count)) for part, count in (("trusted", 90), ("normal", 20)))
    test = write("test", 20, label=False).read_text() + write("odd", 20, 20, label=True).read_text()
    (folder / "test.jsonl").write_text(test)
    return FromFiles(str(folder / "model"), trusted, str(folder / "test.jsonl"), normal), write, model


def test_a_task_from_files_is_run_again_when_model_inputs_or_labels_changed(tmp_path, own, monkeypatch):
    task, write, model = own
    monkeypatch.setattr(bench_module, "parse_spec", lambda kind, text: task)
    monkeypatch.setattr(bench_module, "workers", inline([]))
    runs = []
    real = bench_module.evaluate_seed
    monkeypatch.setattr(bench_module, "evaluate_seed", lambda *args, **more: (runs.append(1), real(*args, **more))[1])
    monkeypatch.setattr("causalmad.evaluation.controls.control_aurocs", lambda data, seed: {})  # they take a while
    mine, seen = Suite("mine", ("own",), {"plain": DETECTORS["plain"]}, 1), []

    def again():
        before = len(runs)
        bench(mine, tmp_path, progress=lambda what, done, total: seen.append((done, total)))
        return len(runs) - before, logs_of(mine, tmp_path)[0].auroc

    ran, first = again()
    assert ran == 1 and first > 0.9
    assert again() == (0, first) and seen[-1] == (1, 1)
    labels = Path(task.test).read_text()
    Path(task.test).write_text(labels.replace("true", "?").replace("false", "true").replace("?", "false"))
    assert again() == (1, pytest.approx(1 - first))
    Path(task.test).write_text(labels)
    assert again() == (1, first)
    model(0.5)
    assert again()[0] == 1 and again()[0] == 0
    for part in ("trusted", "normal"):
        write(part, 80)
        assert again()[0] == 1 and again()[0] == 0


def test_what_comes_from_outside_says_so():
    named = {entry.attribute for entry in catalogue("tasks") if getattr(entry.load(), "outside", False)}
    reads = {"FromFiles", "HuggingFaceTrigger", "Diamonds", "QuirkyDataset", "TinyNaturalMechanisms"}
    assert named == reads
    options = {entry.attribute for entry in catalogue("tasks") if {"model", "path"} & set(fields_of(entry.load()))}
    assert options <= named


def fields_of(spec):
    return [field.name for field in dataclasses.fields(spec)]
