"""Comparing two detectors on the same inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from causalmad.errors import StoreError, nearest
from causalmad.evaluation.bootstrap import Scored
from causalmad.evaluation.intervals import Measured, mean_gap, worst_gap
from causalmad.evaluation.logs import Log


@dataclass(frozen=True)
class Comparison:
    """One detector minus another, over the same tasks, seeds and inputs.

    Attributes:
        first: the one.
        second: the other.
        tasks: task -> (AUROC of the one, of the other, 95 % interval of the difference).
        mean: the difference of the mean AUROC over tasks, and its interval.
        worst: the difference of the worst-task AUROC, and its interval, of at least 95 %:
            :func:`causalmad.evaluation.intervals.worst_gap` says how.
    """

    first: str
    second: str
    tasks: dict[str, tuple[float, float, tuple[float, float]]]
    mean: tuple[float, tuple[float, float]]
    worst: tuple[float, tuple[float, float]]

    def to_data(self) -> dict[str, Any]:
        """The comparison as JSON data."""
        return {
            "first": self.first,
            "second": self.second,
            "tasks": {
                task: {self.first: a, self.second: b, "difference": a - b, "ci95": list(span)}
                for task, (a, b, span) in self.tasks.items()
            },
            "mean_difference": {"value": self.mean[0], "ci95": list(self.mean[1])},
            "worst_task_difference": {"value": self.worst[0], "ci95": list(self.worst[1])},
        }

    def table(self) -> Any:
        """A rich table for a terminal."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(f"{self.first} minus {self.second}: AUROC"), title_justify="left")
        for heading in ("task", self.first, self.second, "difference", "95 % interval"):
            table.add_column(Text(heading), justify="left" if heading == "task" else "right")
        for task, (a, b, span) in self.tasks.items():
            table.add_row(Text(task), f"{a:.3f}", f"{b:.3f}", f"{a - b:+.3f}", _span(span))
        for name, (value, span) in (("mean over tasks", self.mean), ("worst task", self.worst)):
            table.add_row(name, "", "", f"{value:+.3f}", _span(span))
        return table


def compare(logs: Iterable[Log], first: str, second: str) -> Comparison:
    """Two detectors on every task that both were run on, input by input; null tasks, where 0.5 is right, do not count.

    Raises:
        StoreError: when there is no log of one of them, or nothing that both were run on.
    """
    runs = runs_of(log for log in logs if not log.null)
    for name in (first, second):
        if name not in runs:
            raise StoreError(f"no log of {name!r}", tries=nearest(name, list(runs)))
    tasks = sorted(set(runs[first]) & set(runs[second]))
    sides: tuple[list[list[Scored]], list[list[Scored]]] = ([], [])
    kept = []
    for task in tasks:
        seeds = sorted(set(runs[first][task]) & set(runs[second][task]))
        if not seeds:
            continue
        kept.append(task)
        for side, name in zip(sides, (first, second)):
            side.append([_aligned(runs[name][task][seed], runs[first][task][seed]) for seed in seeds])
    if not kept:
        raise StoreError(f"{first} and {second} were run on no task and seed together")
    means = [[float(np.mean([_auroc(one) for one in task])) for task in side] for side in sides]
    each = {
        task: (a, b, mean_gap(Measured.of([x]), Measured.of([y])))
        for task, a, b, x, y in zip(kept, *means, *sides, strict=True)
    }
    both = [Measured.of(side) for side in sides]
    return Comparison(
        first,
        second,
        each,
        (float(np.mean(means[0]) - np.mean(means[1])), mean_gap(*both)),
        (min(means[0]) - min(means[1]), worst_gap(*both)),
    )


def runs_of(logs: Iterable[Log]) -> dict[str, dict[str, dict[int, Log]]]:
    """Detector -> task -> seed -> log, without refusals."""
    runs: dict[str, dict[str, dict[int, Log]]] = {}
    for log in logs:
        if log.refused is None:
            runs.setdefault(log.detector, {}).setdefault(log.task, {})[log.seed] = log
    return runs


def _aligned(log: Log, other: Log) -> Scored:
    """The scores of a log in the order of another's ids."""
    places = {key: row for row, key in enumerate(log.content["ids"])}
    wanted = other.content["ids"]
    if set(places) != set(wanted):
        raise StoreError(f"{log.task}, seed {log.seed}: {log.detector} and {other.detector} scored other inputs")
    rows = np.array([places[key] for key in wanted])
    found = log.scored
    if not np.array_equal(found.labels[rows], other.scored.labels):
        raise StoreError(f"{log.task}, seed {log.seed}: the labels of {log.detector} and {other.detector} differ")
    return Scored(found.labels[rows], found.scores[rows])


def _auroc(one: Scored) -> float:
    from causalmad.evaluation.metrics import auroc

    return auroc(one.labels, one.scores)


def _span(span: tuple[float, float]) -> str:
    return f"{span[0]:+.3f} to {span[1]:+.3f}"
