"""Bench: every detector of a suite on every task, in parallel processes, resumable, one log per run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causalmad.config import parse_spec
from causalmad.detectors import CANDIDATES
from causalmad.errors import CausalmadError, StoreError, TaskError
from causalmad.evaluation.choosing import Choice, choose
from causalmad.evaluation.leaderboard import Leaderboard
from causalmad.evaluation.logs import Log, fingerprints, place
from causalmad.evaluation.protocol import Progress, evaluate_seed
from causalmad.evaluation.suites import Suite, headline
from causalmad.evaluation.workers import workers
from causalmad.names import parse_detector
from causalmad.whole import write_whole

POLL = 0.5  # seconds


@dataclass(frozen=True)
class Job:
    """All runs of one task and seed: they share the model, the inputs and the controls.

    Attributes:
        folder: where logs are written.
        task: as it is written on the command line.
        seed: of the task and the fits.
        detectors: (name, text) of those that have no log yet; all, where model and inputs come from outside.
    """

    folder: Path
    task: str
    seed: int
    detectors: tuple[tuple[str, str], ...]


def bench(suite: Suite, folder: Path, *, processes: int | None = None, progress: Progress | None = None) -> Leaderboard:
    """Run what is missing of a suite, then read the leaderboard from its logs.

    A killed bench goes on where it was: whatever has a sound log is not run again. A task whose model or inputs come
    from outside, such as ``from-files``, is loaded all the same, and run again where any of them or a label changed.

    Args:
        suite: tasks, detectors and seeds.
        folder: for the logs, and for ``leaderboard.json``, ``.csv`` and ``.md``.
        processes: how many at once; by default one for each core.
        progress: called with what is being done.

    Raises:
        TaskError: when a task cannot be made or run; all others are done first, and kept.
    """
    jobs = [job for seed in range(suite.seeds) for task in suite.tasks if (job := _job(suite, folder, task, seed))]
    missing = sum(len(job.detectors) for job in jobs)
    say = progress or (lambda what, done, total: None)
    title = f"{headline(suite.name)}: runs of a detector on a task and seed"
    say(title, 0, missing)
    failures: list[str] = []
    if jobs:
        awaited = {path: _written(path) for job in jobs for path in _places(job)}
        count = min(processes or os.cpu_count() or 1, len(jobs))
        with workers(count) as pool:
            names: dict[Future[None], Job] = {pool.submit(run, job): job for job in jobs}
            running = set(names)
            while running:
                done, running = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
                over = {path for future in done for path in _places(names[future])}
                awaited = {p: before for p, before in awaited.items() if p not in over and _written(p) == before}
                say(title, missing - len(awaited), missing)
                for future in done:
                    try:
                        future.result()
                    except BrokenProcessPool as error:
                        raise TaskError(
                            "a process of the bench ended in the middle of a run; what was done before is kept",
                            causes=["too little memory for so many processes at once", "it was killed"],
                            tries=["the same command again", f"--processes {max(1, count // 2)}"],
                        ) from error
                    except Exception as error:  # a night's work is not lost to one task
                        job = names[future]
                        failures.append(f"{job.task}, seed {job.seed}: {type(error).__name__}: {error}")
    if failures:
        raise TaskError(
            f"{len(failures)} of {len(jobs)} tasks could not be run, and there is no leaderboard without them; all "
            f"else is done and kept. {'; '.join(failures)}",
            tries=["the same command again", "a suite without these tasks"],
        )
    board, choice = standings(suite, folder)
    write_leaderboard(board, folder, choice)
    return board


def run(job: Job) -> None:
    """The runs of a job, one after the other; each is logged as soon as it is done."""
    import torch

    from causalmad.evaluation.controls import control_aurocs
    from causalmad.evaluation.memo import Memo
    from causalmad.models import open_model

    torch.set_num_threads(1)  # the processes share the cores
    spec = parse_spec("tasks", job.task)
    data = spec.load(job.seed)
    fingerprint = open_model(data.model).fingerprint()
    wanted = job.detectors
    if _outside(spec):  # only now is it known whether what is logged is of this model and of these inputs
        prints = fingerprints(spec, data, fingerprint)
        wanted = tuple(pair for pair in wanted if not _done(job.folder, job.task, *pair, job.seed, prints))
        if not wanted:
            return
    controls = control_aurocs(data, job.seed)
    memo = Memo()
    for name, text in wanted:
        parts = parse_detector(text)
        found: Any
        try:
            found, _ = evaluate_seed(data, parts, job.seed, controls=controls, memo=memo)
        except CausalmadError as error:
            found = error
        Log.of(job.task, spec, name, parts, data, found, fingerprint).write(job.folder)


def logs_of(suite: Suite, folder: Path) -> tuple[Log, ...]:
    """The logs of a suite, in the order of its tasks, detectors and seeds."""
    wanted = [(task, name, seed) for task in suite.tasks for name in suite.detectors for seed in range(suite.seeds)]
    return tuple(Log.read(place(folder, *key)) for key in wanted)


def standings(suite: Suite, folder: Path) -> tuple[Leaderboard, Choice | None]:
    """The leaderboard of a suite's logs, and what its tasks choose where it runs all candidates."""
    logs = logs_of(suite, folder)
    if not set(CANDIDATES) <= set(suite.detectors):
        return Leaderboard.of(logs, suite.name), None
    choice = choose(logs, tuple(CANDIDATES))
    return Leaderboard.of((*logs, *choice.logs), suite.name), choice


def write_leaderboard(board: Leaderboard, folder: Path, choice: Choice | None = None) -> tuple[Path, ...]:
    """Write ``leaderboard.json``, ``.csv`` and ``.md`` to a folder; returns their paths."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    data = board.to_data() | ({} if choice is None else {"choice": choice.to_data()})
    said = ", ".join(f"{name} {version}" for name, version in board.versions.items())
    text = [
        f"# {headline(board.suite)}",
        f"`causalmad bench --suite {board.suite} --out DIR`; {said}.",
        _said_of_intervals(len(board.seeds)),
        *([] if choice is None else [choice.to_markdown()]),
        board.to_markdown(),
    ]
    texts = {"json": json.dumps(data, indent=1) + "\n", "csv": board.to_csv(), "md": "\n\n".join(text)}
    return tuple(write_whole(folder / f"leaderboard.{ending}", [text]) for ending, text in texts.items())


def _said_of_intervals(seeds: int) -> str:
    if seeds == 1:
        return "AUROC of one seed, with 95 % bootstrap intervals over its inputs: they say nothing of other models."
    return (
        f"Mean AUROC over {seeds} seeds, each with a model and inputs of its own, with Student's 95 % intervals over "
        "them, on the scale of log-odds."
    )


def _job(suite: Suite, folder: Path, task: str, seed: int) -> Job | None:
    """What is missing of a task and seed, or was made otherwise; None where all is there."""
    pairs, outside = suite.detectors.items(), _outside(parse_spec("tasks", task))
    missing = [(name, text) for name, text in pairs if outside or not _done(folder, task, name, text, seed)]
    return Job(folder, task, seed, tuple(missing)) if missing else None


def _outside(spec: object) -> bool:
    """Whether a task's model or inputs follow from more than its options and seed."""
    return bool(getattr(spec, "outside", False))


def _done(folder: Path, task: str, name: str, text: str, seed: int, prints: Mapping[str, str] | None = None) -> bool:
    """Whether there is a sound log of this very detector on this very task, and of what it gives now (``prints``)."""
    try:
        log = Log.read(place(folder, task, name, seed))
    except StoreError:
        return False
    return log.made_by(parse_spec("tasks", task), parse_detector(text), prints)


def _written(path: Path) -> int | None:
    """When a log was written, None where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _places(job: Job) -> Iterable[Path]:
    return (place(job.folder, job.task, name, job.seed) for name, _ in job.detectors)
