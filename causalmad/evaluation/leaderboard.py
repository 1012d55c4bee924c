"""Leaderboard: every detector on every task, worst task first, made from logs alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from causalmad.errors import StoreError
from causalmad.evaluation.bootstrap import Scored, bootstrap_interval
from causalmad.evaluation.logs import Log


@dataclass(frozen=True)
class Standing:
    """A detector on a task.

    Attributes:
        auroc: mean over the model seeds.
        ci95: bootstrap interval over inputs and seeds.
        seeds: how many.
        measures: mean over the seeds of what else was measured, such as ``fpr_at_0.05``.
    """

    auroc: float
    ci95: tuple[float, float]
    seeds: int
    measures: Mapping[str, float]


@dataclass(frozen=True)
class Leaderboard:
    """Standings of detectors on tasks.

    Attributes:
        suite: what was run.
        seeds: the seeds that were run.
        standings: detector -> task -> standing; a task to which a detector does not apply is missing.
        refusals: detector -> task -> why it does not apply.
        versions: of what the numbers depend on.
    """

    suite: str
    seeds: tuple[int, ...]
    standings: Mapping[str, Mapping[str, Standing]]
    refusals: Mapping[str, Mapping[str, str]]
    versions: Mapping[str, str]

    @classmethod
    def of(cls, logs: Iterable[Log], suite: str = "") -> Leaderboard:
        """The leaderboard of some logs.

        Raises:
            StoreError: when a run is there twice, or a task was run on other data or another model for one detector
                than for the others.
        """
        runs: dict[tuple[str, str], dict[int, Log]] = {}
        prints: dict[tuple[str, int], object] = {}
        for log in logs:
            if prints.setdefault((log.task, log.seed), log.content["fingerprints"]) != log.content["fingerprints"]:
                raise StoreError(
                    f"{log.task}, seed {log.seed}: the logs are of different models or inputs",
                    causes=["logs of different versions in one folder"],
                    tries=["another --out folder"],
                )
            mine = runs.setdefault((log.detector, log.task), {})
            if log.seed in mine:
                raise StoreError(f"{log.detector} on {log.task}, seed {log.seed}, is there twice")
            mine[log.seed] = log
        standings: dict[str, dict[str, Standing]] = {}
        refusals: dict[str, dict[str, str]] = {}
        for (detector, task), each in sorted(runs.items()):
            refused = [log.refused for log in each.values() if log.refused]
            standings.setdefault(detector, {})
            if refused:
                refusals.setdefault(detector, {})[task] = refused[0]
            else:
                standings[detector][task] = _standing([each[seed] for seed in sorted(each)])
        seeds = tuple(sorted({seed for each in runs.values() for seed in each}))
        said: Mapping[str, str] = next((log.content["versions"] for each in runs.values() for log in each.values()), {})
        return cls(suite, seeds, standings, refusals, said)

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks, by name."""
        found = {task for each in self.standings.values() for task in each}
        return tuple(sorted(found | {task for each in self.refusals.values() for task in each}))

    def worst(self, detector: str) -> tuple[str, float]:
        """The task on which a detector does worst, and its AUROC there."""
        return min(((task, found.auroc) for task, found in self.standings[detector].items()), key=lambda pair: pair[1])

    def mean(self, detector: str) -> float:
        """Mean AUROC over the tasks to which a detector applies."""
        return float(np.mean([found.auroc for found in self.standings[detector].values()]))

    @property
    def order(self) -> tuple[str, ...]:
        """Detectors by their worst task, those that do not apply everywhere at the end."""
        known = [name for name, each in self.standings.items() if each]
        return tuple(sorted(known, key=lambda n: (len(self.refusals.get(n, {})) > 0, -self.worst(n)[1], -self.mean(n))))

    def to_data(self) -> dict[str, Any]:
        """The leaderboard as JSON data."""
        detectors = {
            name: {
                "mean_auroc": self.mean(name),
                "worst_auroc": self.worst(name)[1],
                "worst_task": self.worst(name)[0],
                "tasks": {
                    task: {"auroc": found.auroc, "ci95": list(found.ci95), "seeds": found.seeds, **found.measures}
                    for task, found in self.standings[name].items()
                },
                "refused": dict(self.refusals.get(name, {})),
            }
            for name in self.order
        }
        return {"suite": self.suite, "seeds": list(self.seeds), "detectors": detectors, "versions": dict(self.versions)}

    def to_csv(self) -> str:
        """One line per detector and task."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        names = sorted({key for each in self.standings.values() for found in each.values() for key in found.measures})
        writer.writerow(["detector", "task", "auroc", "ci95_low", "ci95_high", "seeds", *names])
        for detector in self.order:
            for task, found in self.standings[detector].items():
                measures = [found.measures.get(name, "") for name in names]
                writer.writerow([detector, task, found.auroc, *found.ci95, found.seeds, *measures])
        return out.getvalue()

    def to_markdown(self) -> str:
        """A table: worst task, mean, then each task with its interval."""
        heads = ["detector", "worst task", "mean", *(f"`{task}`" for task in self.tasks)]
        lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for name in self.order:
            task, worst = self.worst(name)
            cells = [f"`{name}`", f"{worst:.3f} (`{task}`)", f"{self.mean(name):.3f}"]
            for each in self.tasks:
                found = self.standings[name].get(each)
                span = "" if found is None else f"{found.ci95[0]:.3f} to {found.ci95[1]:.3f}"
                cells.append("-" if found is None else f"{found.auroc:.3f} ({span})")
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join([*lines, ""])

    def table(self) -> Any:
        """A rich table for a terminal."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(f"{self.suite}: AUROC over {len(self.seeds)} seeds"), title_justify="left")
        for heading, side in (("detector", "left"), ("worst", "right"), ("worst task", "left"), ("mean", "right")):
            table.add_column(heading, justify=side)  # type: ignore[arg-type]
        for name in self.order:
            task, worst = self.worst(name)
            missing = len(self.refusals.get(name, {}))
            note = f" (does not apply to {missing})" if missing else ""
            table.add_row(Text(name + note), f"{worst:.3f}", Text(task), f"{self.mean(name):.3f}")
        return table


def _standing(logs: Sequence[Log]) -> Standing:
    scored: list[Scored] = [log.scored for log in logs]
    measures: dict[str, list[float]] = {}
    for log in logs:
        result = log.content["result"]
        for group, prefix in (("tpr_at_fpr", "tpr_at_fpr_"), ("fpr_at_alpha", "fpr_at_"), ("subsets", "auroc_")):
            for key, value in result.get(group, {}).items():
                if value is not None:
                    measures.setdefault(f"{prefix}{key}", []).append(float(value))
        measures.setdefault("average_precision", []).append(float(result["average_precision"]))
    summary = {key: float(np.mean(values)) for key, values in sorted(measures.items())}
    return Standing(float(np.mean([log.auroc for log in logs])), bootstrap_interval(scored), len(logs), summary)
