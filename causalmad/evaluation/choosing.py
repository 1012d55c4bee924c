"""Choosing a detector by its worst task, without the task on which it is then judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from causalmad.errors import StoreError
from causalmad.evaluation.comparing import Comparison, compare, runs_of
from causalmad.evaluation.logs import Log

RECOMMENDED, BASELINE = "recommended", "activations"


@dataclass(frozen=True)
class Choice:
    """What the tasks of a suite choose from some candidates.

    Attributes:
        best: the candidate with the best worst task, over all tasks.
        chosen: task -> the candidate that the other tasks choose.
        logs: runs of a detector called ``recommended``: on each task, those of the candidate chosen without it.
        against: those runs minus the activation baseline's, where it was run.
    """

    best: str
    chosen: Mapping[str, str]
    logs: tuple[Log, ...]
    against: Comparison | None

    def to_data(self) -> dict[str, Any]:
        """The choice as JSON data."""
        found = {"best": self.best, "chosen": dict(self.chosen)}
        return found if self.against is None else {**found, "against_baseline": self.against.to_data()}

    def to_markdown(self) -> str:
        """What was chosen, and how it stands to the baseline, in words."""
        text = (
            f"`{RECOMMENDED}`: on each task the candidate that is best on the worst of all *other* tasks. Over all "
            f"tasks that is `{self.best}`."
        )
        others = {task: name for task, name in self.chosen.items() if name != self.best}
        if others:
            text += f" Without {', '.join(f'`{task}` it would be `{name}`' for task, name in others.items())}."
        if self.against is None:
            return text
        parts = [
            f"{what} {value:+.3f} ({low:+.3f} to {high:+.3f})"
            for what, (value, (low, high)) in (
                ("in the mean", self.against.mean),
                ("on the worst task", self.against.worst),
            )
        ]
        return f"{text} Minus `{BASELINE}`, paired, with 95 % intervals: {', '.join(parts)}."


def choose(logs: Iterable[Log], candidates: Sequence[str]) -> Choice:
    """The choice among candidates, from the logs of a suite.

    Raises:
        StoreError: when there are fewer than two tasks, or no candidate applies to all of them.
    """
    known = tuple(logs)
    runs = left_out(known, candidates, RECOMMENDED)
    baseline = any(log.detector == BASELINE and log.refused is None for log in known)
    against = compare([*known, *runs], RECOMMENDED, BASELINE) if baseline else None
    return Choice(best_of(known, candidates), leave_one_task_out(known, candidates), runs, against)


def leave_one_task_out(logs: Iterable[Log], candidates: Sequence[str]) -> dict[str, str]:
    """Task -> the candidate that does best on its worst task among all the *other* tasks; ties go to the better mean.

    Only candidates that apply to every task take part; null tasks choose nothing.

    Raises:
        StoreError: when there are fewer than two tasks, or no candidate applies to all of them.
    """
    known = tuple(log for log in logs if not log.null)
    return _best(known, candidates, sorted({log.task for log in known}))


def _best(logs: Iterable[Log], candidates: Sequence[str], held_out: Sequence[str]) -> dict[str, str]:
    """Task to hold out -> the best candidate on the others."""
    runs = runs_of(logs)
    tasks = sorted({task for each in runs.values() for task in each})
    able = [name for name in candidates if set(runs.get(name, {})) == set(tasks)]
    if len(tasks) < 2 or not able:
        raise StoreError(
            f"{len(tasks)} tasks, and {len(able)} of {len(candidates)} candidates with logs on all of them",
            needed="two tasks or more, and a candidate that was run on each",
        )
    scores = {name: {t: float(np.mean([log.auroc for log in runs[name][t].values()])) for t in tasks} for name in able}

    def quality(name: str, without: str) -> tuple[float, float]:
        others = [value for task, value in scores[name].items() if task != without]
        return min(others), float(np.mean(others))

    return {task: max(able, key=lambda name: quality(name, task)) for task in held_out}


def left_out(logs: Iterable[Log], candidates: Sequence[str], name: str) -> tuple[Log, ...]:
    """Runs of a detector that is chosen without the task on which it is judged, taken from the candidates' runs.

    On each task it is the candidate that :func:`leave_one_task_out` chooses for it; on null tasks, which choose
    nothing, the candidate that is best over all others.

    Args:
        logs: of a suite.
        candidates: among which is chosen.
        name: what the runs are called.
    """
    known = tuple(logs)
    chosen = leave_one_task_out(known, candidates)
    best = best_of(known, candidates)
    return tuple(
        replace(log, detector=name, content={**log.content, "chosen": log.detector})
        for log in known
        if log.detector == chosen.get(log.task, best)
    )


def best_of(logs: Iterable[Log], candidates: Sequence[str]) -> str:
    """The candidate that does best on its worst task over all tasks that are not null."""
    known = tuple(log for log in logs if not log.null)
    # Holding out a task that is not there leaves all of them.
    return _best(known, candidates, ("",))[""]
