"""Choosing a detector by its worst task, without the task on which it is then judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from causalmad.errors import StoreError
from causalmad.evaluation.comparing import Comparison, compare, runs_of
from causalmad.evaluation.intervals import Measured, worse
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
            f"`{RECOMMENDED}`: on each task the candidate that the tasks of *other* families choose: the best on its "
            f"worst task; of those not worse there beyond chance, the best in the mean. All tasks choose `{self.best}`."
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
        return (
            f"{text} Minus `{BASELINE}`, paired, with 95 % intervals that take the choice as given: {', '.join(parts)}."
        )


def choose(logs: Iterable[Log], candidates: Sequence[str]) -> Choice:
    """The choice among candidates, from the logs of a suite.

    Raises:
        StoreError: when there are fewer than two tasks, or no candidate applies to all of them.
    """
    known = tuple(logs)
    trial = _Trial.of(known, candidates)
    best, chosen = trial.best(), {task: trial.best(task) for task in trial.tasks}
    runs = _runs_of_the_chosen(known, chosen, best)
    baseline = any(log.detector == BASELINE and log.refused is None for log in known)
    against = compare([*known, *runs], RECOMMENDED, BASELINE) if baseline else None
    return Choice(best, chosen, runs, against)


def leave_one_task_out(logs: Iterable[Log], candidates: Sequence[str]) -> dict[str, str]:
    """Task -> the candidate that is chosen by all the *other* tasks; versions of the task itself are left out with it.

    The best worst task leads. Candidates whose worst task is not worse beyond chance (the interval of the paired
    difference, :func:`causalmad.evaluation.intervals.worst_gap`, reaches 0) are tied with it, and of these the one with
    the best mean is taken: otherwise a task that nobody solves would choose by its noise. Only candidates that apply to
    every task take part; null tasks choose nothing.

    Raises:
        StoreError: when there are fewer than two tasks, or no candidate applies to all of them.
    """
    trial = _Trial.of(logs, candidates)
    return {task: trial.best(task) for task in trial.tasks}


def best_of(logs: Iterable[Log], candidates: Sequence[str]) -> str:
    """The candidate that is chosen in the same way by all tasks."""
    return _Trial.of(logs, candidates).best()


def _family(task: str) -> str:
    """Versions of one task (shifted, obfuscated) are one family: much of their data and mechanism is the same."""
    return task.partition("[")[0].removesuffix("-obfuscated")


@dataclass(frozen=True)
class _Trial:
    """Candidates on the same tasks.

    Attributes:
        tasks: those that are not null.
        measured: candidate -> its AUROCs, paired between candidates.
    """

    tasks: tuple[str, ...]
    measured: Mapping[str, Measured]

    @classmethod
    def of(cls, logs: Iterable[Log], candidates: Sequence[str]) -> _Trial:
        known = [log for log in logs if not log.null]
        runs = runs_of(known)
        seeds: dict[str, set[int]] = {}
        for log in known:
            seeds.setdefault(log.task, set()).add(log.seed)
        tasks = tuple(sorted(seeds))
        # Refused once, refused: means over fewer seeds are no means over the same models.
        able = [name for name in candidates if {t: set(each) for t, each in runs.get(name, {}).items()} == seeds]
        if len(tasks) < 2 or not able:
            raise StoreError(
                f"{len(tasks)} tasks, and {len(able)} of {len(candidates)} candidates with logs on all of them",
                needed="two tasks or more, and a candidate that was run on each",
            )
        each = {
            name: [[runs[name][task][seed] for seed in sorted(runs[name][task])] for task in tasks] for name in able
        }
        return cls(tasks, {name: Measured.of([[log.scored for log in task] for task in each[name]]) for name in able})

    def best(self, without: str = "") -> str:
        """The choice of all tasks but one, and but its siblings."""
        kept = [place for place, task in enumerate(self.tasks) if _family(task) != _family(without)]
        if not kept:
            raise StoreError(f"every task is a version of {without}", needed="tasks of two kinds or more")
        found = {name: measured.part(kept) for name, measured in self.measured.items()}
        means = {name: measured.values.mean(0) for name, measured in found.items()}
        leader = max(means, key=lambda name: float(means[name].min()))
        tied = [name for name, measured in found.items() if not worse(measured, found[leader])]
        return max(tied, key=lambda name: float(means[name].mean()))


def _runs_of_the_chosen(logs: Iterable[Log], chosen: Mapping[str, str], best: str) -> tuple[Log, ...]:
    """On each task the runs of what was chosen without it; on null tasks, which choose nothing, those of the best."""
    return tuple(
        replace(log, detector=RECOMMENDED, content={**log.content, "chosen": log.detector})
        for log in logs
        if log.detector == chosen.get(log.task, best)
    )
