"""What is killed: each victim says how it is prepared, run, and judged after a kill and after its resumption."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import causalmad as cm
import causalmad.evaluation.bench as bench_module
from causalmad import Detector, FittedDetector, Monitor
from causalmad.cli.files import write_lines
from causalmad.cli.stream import Tally, Work, lines_of
from causalmad.config import parse_spec
from causalmad.errors import StoreError
from causalmad.evaluation import controls
from causalmad.evaluation.bench import bench
from causalmad.evaluation.logs import read_logs
from causalmad.evaluation.suites import Suite
from causalmad.evaluation.workers import workers
from causalmad.extraction.address import row_keys
from causalmad.models import open_model
from causalmad.rows import chunked, each_row
from causalmad.testing.toys import toy
from causalmad.whole import write_whole
from tests.extraction.counted import rows_on_disk
from tests.faults.kill import count_calls, kill, spawn, wait
from tests.faults.plain import _cached
from tests.faults.watch import Fault
from tests.stub_task import Stub

MADE = toy("mlp", trusted=80, fresh=300)


class Victim:
    """Some work that may be killed.

    ``prepare`` comes once for each folder, ``run`` is what is killed, ``after`` judges what is left by a kill, and
    ``done`` what is there when it was run once more; both raise :class:`Fault`.
    """

    name = ""
    processes = 0  # how many it starts itself

    def prepare(self, folder: Path) -> None:
        """What is there before."""

    def run(self, folder: Path) -> None:
        """The work."""
        raise NotImplementedError

    def after(self, folder: Path) -> None:
        """Nothing half done is taken for whole."""

    def done(self, folder: Path) -> None:
        """The same as after an uninterrupted run."""
        raise NotImplementedError


@cache
def _fitted(seed: int) -> FittedDetector:
    return Detector(cm.signatures.Activations()).fit(MADE.model, MADE.trusted, seed=seed)


@cache
def _scores(seed: int) -> Any:
    return _fitted(seed).score(MADE.fresh)


class Save(Victim):
    """A detector is fitted and saved over another one: the old or the new one is there, always."""

    name = "fit and save"
    before: int | None = 0

    def prepare(self, folder: Path) -> None:
        _scores(0), _scores(1)
        if self.before is not None:
            _fitted(self.before).save(folder / "det")

    def run(self, folder: Path) -> None:
        Detector(cm.signatures.Activations()).fit(MADE.model, MADE.trusted, seed=1).save(folder / "det")

    def after(self, folder: Path) -> None:
        try:
            found = FittedDetector.load(folder / "det", MADE.model).score(MADE.fresh)
        except StoreError as error:
            if self.before is None and not (folder / "det").exists():
                return
            raise Fault(f"the detector is lost: {str(error).splitlines()[0]}") from error
        if not any(np.array_equal(found, _scores(seed)) for seed in {1, self.before} - {None}):
            raise Fault("neither the old nor the new detector")

    def done(self, folder: Path) -> None:
        if not np.array_equal(FittedDetector.load(folder / "det", MADE.model).score(MADE.fresh), _scores(1)):
            raise Fault("not the new detector")
        left = [path.name for path in folder.iterdir() if ".old." in path.name]
        if left:
            raise Fault(f"left behind: {left}")


class FirstSave(Save):
    """The same where there was none."""

    name = "fit and save anew"
    before = None


class Trained(Victim):
    """A task's trained model is kept in the cache."""

    name = "trained model"

    def run(self, folder: Path) -> None:
        os.environ["CAUSALMAD_CACHE"] = str(folder)
        _cached()

    def done(self, folder: Path) -> None:
        os.environ["CAUSALMAD_CACHE"] = str(folder)
        model, card = _cached()
        entries = [path for path in (folder / "tasks").iterdir() if not path.name.startswith(".")]
        if len(entries) != 1 or not card["fingerprint"] or not all((value == 1).all() for value in model.parameters()):
            raise Fault(f"entries {entries}, card {card}")


class Together(Trained):
    """Two processes on one cache, one of which is killed."""

    name = "trained model, two processes"

    def run(self, folder: Path) -> None:
        other = spawn(lambda: Trained.run(self, folder))
        try:
            for _ in range(3):
                Trained.run(self, folder)
        finally:
            wait(other)


class Stream(Victim):
    """A stream is scored into a file: all its lines are there, or none, or the old file."""

    name = "detect to a file"

    def prepare(self, folder: Path) -> None:
        rows = [json.dumps({"id": f"r{i}", "x": row.tolist()}) for i, row in enumerate(MADE.fresh.main)]
        (folder / "in.jsonl").write_text("\n".join(rows))
        (folder / "out.jsonl").write_text("old")
        self.wanted = self._lines(folder)

    def _lines(self, folder: Path) -> list[str]:
        opened = open_model(MADE.model)
        work = Work(_fitted(0), 0.2, "flagged", 0, lambda what, done, total: None, True)
        return list(lines_of(work, chunked(each_row(str(folder / "in.jsonl")), opened, size=32), Tally()))

    def run(self, folder: Path) -> None:
        opened = open_model(MADE.model)
        work = Work(_fitted(0), 0.2, "flagged", 0, lambda what, done, total: None, True)
        chunks = chunked(each_row(str(folder / "in.jsonl")), opened, size=32)
        write_lines(str(folder / "out.jsonl"), lines_of(work, chunks, Tally()))

    def after(self, folder: Path) -> None:
        text = (folder / "out.jsonl").read_text()
        if text not in ("old", "".join(f"{line}\n" for line in self.wanted)):
            raise Fault(f"half a file of {len(text)} characters")

    def done(self, folder: Path) -> None:
        if (folder / "out.jsonl").read_text().splitlines() != self.wanted:
            raise Fault("rows lost, doubled or changed")


class Watching(Victim):
    """A monitor over a stream, saved after every batch; its events go to a file, cut to what the state has seen."""

    name = "monitor"
    size = 20

    def prepare(self, folder: Path) -> None:
        whole = Monitor(_fitted(0), alpha=0.1)
        events = [event for start in range(0, len(MADE.fresh), self.size) for event in whole(self._batch(start))]
        self.wanted, self.state = [self._line(event) for event in events], whole.state()

    def _batch(self, start: int) -> Any:
        return MADE.fresh[start : start + self.size]

    def _line(self, event: Any) -> str:
        return json.dumps([event.id, event.score, event.p_value, event.capital])

    def run(self, folder: Path) -> None:
        state, events = folder / "monitor.json", folder / "events.jsonl"
        monitor = Monitor.load(state, _fitted(0)) if state.exists() else Monitor(_fitted(0), alpha=0.1)
        known = events.read_text().splitlines()[: monitor.steps] if events.exists() else []
        write_whole(events, (f"{line}\n" for line in known))
        with events.open("a") as file:
            for start in range(monitor.steps, len(MADE.fresh), self.size):
                for event in monitor(self._batch(start)):
                    file.write(self._line(event) + "\n")
                file.flush()
                monitor.save(state)

    def after(self, folder: Path) -> None:
        if (folder / "monitor.json").exists():
            steps = Monitor.load(folder / "monitor.json", _fitted(0)).steps
            if len((folder / "events.jsonl").read_text().splitlines()) < steps:
                raise Fault("the state knows of events that are lost")

    def done(self, folder: Path) -> None:
        if (folder / "events.jsonl").read_text().splitlines() != self.wanted:
            raise Fault("events lost, doubled or changed")
        if Monitor.load(folder / "monitor.json", _fitted(0)).state() != self.state:
            raise Fault("another state than without a kill")


class Extraction(Victim):
    """Signatures of many inputs into a cache, shard by shard."""

    name = "extraction"

    def prepare(self, folder: Path) -> None:
        self.wanted = cm.extract(_fitted(0), MADE.fresh, shard=16).values

    def run(self, folder: Path) -> None:
        cm.extract(_fitted(0), MADE.fresh, cache=folder / "cache", shard=16)

    def after(self, folder: Path) -> None:
        """Whatever a kill left is read as it is: the rest is computed in memory, and the cache is not touched."""
        if (folder / "cache").exists():
            # What is being written, by a process that lives, is no part of the cache yet.
            shutil.copytree(folder / "cache", folder / "copy", ignore=shutil.ignore_patterns(".*"))
            self._require_once(folder / "copy")
            found = cm.extract(_fitted(0), MADE.fresh, cache=folder / "copy", shard=16).values
            shutil.rmtree(folder / "copy")
            if not np.array_equal(found, self.wanted):
                raise Fault("other rows than without a kill")

    def done(self, folder: Path) -> None:
        found = cm.extract(_fitted(0), MADE.fresh, cache=folder / "cache", shard=16)
        if found.computed or not np.array_equal(found.values, self.wanted):
            raise Fault(f"{found.computed} rows lost, or other rows")
        if (rows := self._require_once(folder / "cache")) != len(MADE.fresh):
            raise Fault(f"{rows} rows on disk of {len(MADE.fresh)} inputs")

    def _require_once(self, cache: Path) -> int:
        """How many rows are in the shards on disk, each of an input, right, and there once."""
        keys, values, _ = rows_on_disk(cache)
        known = {key.tobytes(): row for key, row in zip(row_keys(MADE.fresh), self.wanted, strict=True)}
        if len({key.tobytes() for key in keys}) != len(keys):
            raise Fault("a row is twice in the shards on disk")
        for key, row in zip(keys, values, strict=True):
            if key.tobytes() not in known or not np.array_equal(known[key.tobytes()], row):
                raise Fault("a row on disk that is of no input, or another one")
        return len(keys)


class ExtractionTogether(Extraction):
    """Two processes on one cache."""

    name = "extraction, two processes"

    def run(self, folder: Path) -> None:
        other = spawn(lambda: Extraction.run(self, folder))
        try:
            Extraction.run(self, folder)
        finally:
            wait(other)


class Inline:
    """A pool of no processes: the same jobs, in this one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """As a pool."""

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *args: Any) -> None:
        """Nothing waits."""

    def submit(self, function: Any, job: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(job))
        return done


class Bench(Victim):
    """A bench whose jobs run in the process that is killed."""

    name = "bench"

    def prepare(self, folder: Path) -> None:
        self.wanted = _bench_logs(self)

    def run(self, folder: Path) -> None:
        bench_module.parse_spec = lambda kind, text: Stub(trusted=60)
        bench_module.workers = Inline  # type: ignore[assignment]
        controls.control_aurocs, known = lambda data, seed: {}, controls.control_aurocs  # they take most of the time
        try:
            bench(self.suite(("stub",)), folder / "out")
        finally:
            bench_module.parse_spec, bench_module.workers = parse_spec, workers
            controls.control_aurocs = known

    def suite(self, tasks: tuple[str, ...]) -> Suite:
        return Suite("small", tasks, {"one": "activations+mahalanobis", "two": "output-only+mahalanobis"}, 2)

    def after(self, folder: Path) -> None:
        for key, value in _plain_logs(folder / "out").items():
            if self.wanted.get(key) != value:
                raise Fault(f"the log of {key} is another")

    def done(self, folder: Path) -> None:
        if _plain_logs(folder / "out") != self.wanted or not (folder / "out" / "leaderboard.json").exists():
            raise Fault("logs lost, doubled or changed")


class BenchOfProcesses(Bench):
    """The same in two worker processes, which are killed too, or have to notice."""

    name = "bench, two processes"
    processes = 2

    def prepare(self, folder: Path) -> None:
        made = toy("gpt2", trusted=60, fresh=40)
        made.model.save_pretrained(folder / "m")
        rows = [json.dumps({"input_ids": row.tolist()}) for row in made.trusted.main]
        (folder / "t.jsonl").write_text("\n".join(rows))
        tests = [json.dumps({"input_ids": r.tolist(), "label": i % 2}) for i, r in enumerate(made.fresh.main)]
        (folder / "x.jsonl").write_text("\n".join(tests))
        self.wanted = _bench_logs(self, folder)

    def run(self, folder: Path) -> None:
        os.chdir(folder)
        bench(self.suite(("from-files[model=m,trusted=t.jsonl,test=x.jsonl]",)), folder / "out", processes=2)


_LOGS: dict[type, Any] = {}


def _bench_logs(victim: Bench, folder: Path | None = None) -> dict[Any, Any]:
    """The logs of an uninterrupted run, made once in a process of its own."""
    if type(victim) not in _LOGS:
        with TemporaryDirectory() as other:
            where = folder or Path(other)
            if wait(spawn(lambda: victim.run(where))):
                raise Fault("the bench does not run")
            _LOGS[type(victim)] = _plain_logs(where / "out")
            shutil.rmtree(where / "out")
    return _LOGS[type(victim)]


def _plain_logs(folder: Path) -> dict[Any, Any]:
    """The logs of a folder without what the clock and the repository say."""
    if not any(folder.glob("logs/*/*.json")):
        return {}
    found = {}
    for log in read_logs([folder]):
        content = json.loads(json.dumps(dict(log.content)))
        content.pop("revision")
        for name in ("fit_seconds", "score_seconds"):
            content["result"].pop(name)
        if (log.detector, log.seed) in found:
            raise Fault(f"{log.detector} is there twice")
        found[log.detector, log.seed] = content
    return found


VICTIMS: dict[str, Callable[[], Victim]] = {
    each.name: each
    for each in (
        *(Save, FirstSave, Trained, Together, Stream, Watching, Extraction, ExtractionTogether),
        *(Bench, BenchOfProcesses),
    )
}


def campaign(victim: Victim, count: int, seed: int, most_kills: int = 6) -> dict[str, Any]:
    """Kill a victim ``count`` times, resuming it and killing it again, until it is left to end.

    Args:
        victim: what is killed.
        count: kills that came before the end.
        seed: of the moments.
        most_kills: kills in one folder, after which it may end.

    Returns:
        How many kills, how many of them found nothing wrong, and the first things that were.
    """
    draw, killed, tried, wrong = random.Random(seed), 0, 0, []
    here = os.getcwd()
    with TemporaryDirectory() as first:
        victim.prepare(Path(first))
        started = time.perf_counter()
        wait(spawn(partial(victim.run, Path(first))))
        seconds = time.perf_counter() - started
    calls = 0
    if not victim.processes:
        with TemporaryDirectory() as again:
            victim.prepare(Path(again))
            calls = count_calls(partial(victim.run, Path(again)))
    while killed < count and tried < 20 * count:
        with TemporaryDirectory() as name:
            folder = Path(name)
            run = partial(victim.run, folder)
            victim.prepare(folder)
            try:
                for _ in range(min(count - killed, draw.randrange(1, most_kills + 1))):
                    tried += 1
                    killed += kill(run, draw, seconds, calls, not victim.processes or draw.random() < 0.5)
                    victim.after(folder)
                if wait(spawn(run)):
                    raise Fault("it cannot be run again")
                victim.done(folder)
            except Exception as error:
                wrong.append(f"kill {killed}: {type(error).__name__}: {error}")
            finally:
                os.chdir(here)
    return {"tried": killed, "failed": len(wrong), "seed": seed, "first failures": wrong[:5]}
