"""Leaderboard: every detector on every task, worst task first, made from logs alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from causalmad.errors import StoreError
from causalmad.evaluation.intervals import auroc_interval
from causalmad.evaluation.logs import Log

if TYPE_CHECKING:
    from causalmad.plots.leaderboard import Row

BASELINES = ("activations", "activations+mahalanobis")  # the baseline of the field, by its name and in full


@dataclass(frozen=True)
class Standing:
    """A detector on a task.

    Attributes:
        auroc: mean over the model seeds.
        ci95: its interval over the seeds, each with a model and inputs of its own; with one seed, over its inputs.
        seeds: how many.
        measures: mean over the seeds of what else was measured, such as ``fpr_at_0.05``.
        outside: how many shares of flagged normals lie outside the 99 % interval in which they should, and of how many;
            None where normal inputs are not exchangeable with trusted ones, and nothing is promised.
    """

    auroc: float
    ci95: tuple[float, float]
    seeds: int
    measures: Mapping[str, float]
    outside: tuple[int, int] | None = None


@dataclass(frozen=True)
class Leaderboard:
    """Standings of detectors on tasks.

    Attributes:
        suite: what was run.
        seeds: the seeds that were run.
        standings: detector -> task -> standing; a task to which a detector does not apply is missing.
        refusals: detector -> task -> why it does not apply.
        versions: of what the numbers depend on.
        nulls: tasks whose "anomalies" come about like everything else: 0.5 is right there, and neither the worst task
            nor the mean counts them.
    """

    suite: str
    seeds: tuple[int, ...]
    standings: Mapping[str, Mapping[str, Standing]]
    refusals: Mapping[str, Mapping[str, str]]
    versions: Mapping[str, str]
    nulls: frozenset[str] = frozenset()

    @classmethod
    def of(cls, logs: Iterable[Log], suite: str = "") -> Leaderboard:
        """The leaderboard of some logs.

        Args:
            logs: runs, each of a detector on a task and seed.
            suite: how they are called together.

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
        nulls = frozenset(task for (_, task), each in runs.items() if any(log.null for log in each.values()))
        return cls(suite, seeds, standings, refusals, said, nulls)

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks, by name."""
        found = {task for each in self.standings.values() for task in each}
        return tuple(sorted(found | {task for each in self.refusals.values() for task in each}))

    def worst(self, detector: str) -> tuple[str, float]:
        """The task on which a detector does worst, and its AUROC there."""
        return min(((task, found.auroc) for task, found in self._counted(detector).items()), key=lambda pair: pair[1])

    def mean(self, detector: str) -> float:
        """Mean AUROC over the tasks to which a detector applies."""
        return float(np.mean([found.auroc for found in self._counted(detector).values()]))

    def _counted(self, detector: str) -> dict[str, Standing]:
        return {task: found for task, found in self.standings[detector].items() if task not in self.nulls}

    @property
    def order(self) -> tuple[str, ...]:
        """Detectors by their worst task, those that do not apply everywhere at the end."""
        known = [name for name in self.standings if self._counted(name)]
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
                    | ({} if found.outside is None else {"flagged_outside_99": list(found.outside)})
                    for task, found in self.standings[name].items()
                },
                "refused": dict(self.refusals.get(name, {})),
            }
            for name in self.order
        }
        return {
            "suite": self.suite,
            "seeds": list(self.seeds),
            "null_tasks": sorted(self.nulls),
            "detectors": detectors,
            "versions": dict(self.versions),
        }

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
        """Tables: worst task and mean, then each task with its interval; null tasks; flagged normals."""
        counted = [task for task in self.tasks if task not in self.nulls]
        lines = _markdown(
            ["detector", "worst task", "mean", *(f"`{task}`" for task in counted)],
            [
                [f"`{name}`", "{1:.3f} (`{0}`)".format(*self.worst(name)), f"{self.mean(name):.3f}"]
                + [_cell(self.standings[name].get(task)) for task in counted]
                for name in self.order
            ],
        )
        if self.nulls:
            lines += [
                "",
                "## Null tasks",
                "",
                "Nothing is anomalous there: an interval should hold 0.5, and one in twenty misses it by chance.",
                "",
            ]
            nulls = sorted(self.nulls)
            lines += _markdown(
                ["detector", *(f"`{task}`" for task in nulls)],
                [[f"`{name}`", *(_cell(self.standings[name].get(task)) for task in nulls)] for name in self.order],
            )
        return "\n".join([*lines, *self._flagged(), ""])

    def _flagged(self) -> list[str]:
        """Share of fresh normal inputs flagged at 0.05: where a guarantee holds, and under each shift."""
        key = "fpr_at_0.05"
        each = {name: {t: f for t, f in self.standings[name].items() if key in f.measures} for name in self.order}
        if not any(each.values()):
            return []
        shifted = sorted({task for found in each.values() for task, f in found.items() if f.outside is None})
        rows = []
        for name, found in each.items():
            plain = [f.measures[key] for f in found.values() if f.outside is not None]
            outside = [f.outside for f in found.values() if f.outside is not None]
            rows.append(
                [f"`{name}`", f"{np.mean(plain):.3f}" if plain else "-"]
                + [f"{sum(pair[0] for pair in outside)} of {sum(pair[1] for pair in outside)}"]
                + [f"{found[task].measures[key]:.3f}" if task in found else "-" for task in shifted]
            )
        head = ["detector", "plain normals", "outside their 99 % interval", *(f"`{task}`" for task in shifted)]
        said = "Share of fresh normal inputs with p <= 0.05. Under a shift nothing is promised."
        return ["", "## Flagged normals", "", said, "", *_markdown(head, rows)]

    def plot(self, ax: Any = None) -> Any:
        """Matplotlib axes with the detectors in order: AUROC on the worst task with its interval, and the mean.

        Args:
            ax: axes to draw on; without, new ones, of a figure (``ax.figure``) that pyplot does not know of.

        Raises:
            SpecError: when matplotlib is not installed.
        """
        from causalmad.plots.leaderboard import leaderboard

        rows = [self._row(name) for name in self.order]
        rows += [self._row(name) for name in self.standings if name not in self.order]
        title = f"{self.suite or 'leaderboard'}: AUROC over {len(self.seeds)} seed{'s' * (len(self.seeds) != 1)}"
        return leaderboard(rows, title, ax)

    def _row(self, name: str) -> Row:
        from causalmad.plots.leaderboard import Row

        said, baseline = name + self._missing(name), name in BASELINES
        if not self._counted(name):
            return Row(said, baseline)
        task, worst = self.worst(name)
        return Row(said, baseline, worst, self.standings[name][task].ci95, self.mean(name), task)

    def _missing(self, name: str) -> str:
        count = len(self.refusals.get(name, {}))
        return f" (does not apply to {count})" if count else ""

    def _repr_html_(self) -> str:
        """The table for notebooks."""
        from causalmad.plots.tables import to_html

        return to_html(self.table())

    def table(self) -> Any:
        """A rich table for a terminal."""
        from rich.table import Table
        from rich.text import Text

        name = self.suite.partition(" ")[0]
        table = Table(title=Text(f"{name}: AUROC over {len(self.seeds)} seeds"), title_justify="left")
        for heading, side in (("detector", "left"), ("worst", "right"), ("worst task", "left"), ("mean", "right")):
            table.add_column(heading, justify=side)  # type: ignore[arg-type]
        for name in self.order:
            task, worst = self.worst(name)
            table.add_row(Text(name + self._missing(name)), f"{worst:.3f}", Text(task), f"{self.mean(name):.3f}")
        return table


def _standing(logs: Sequence[Log]) -> Standing:
    measures: dict[str, list[float]] = {}
    for log in logs:
        result = log.content["result"]
        for group, prefix in (("tpr_at_fpr", "tpr_at_fpr_"), ("fpr_at_alpha", "fpr_at_"), ("subsets", "auroc_")):
            for key, value in result.get(group, {}).items():
                if value is not None:
                    measures.setdefault(f"{prefix}{key}", []).append(float(value))
        measures.setdefault("average_precision", []).append(float(result["average_precision"]))
    summary = {key: float(np.mean(values)) for key, values in sorted(measures.items())}
    auroc = float(np.mean([log.auroc for log in logs]))
    return Standing(auroc, auroc_interval([log.scored for log in logs]), len(logs), summary, _outside(logs))


def _outside(logs: Sequence[Log]) -> tuple[int, int] | None:
    """How many shares of flagged normals are not where 99 % of them should be, and of how many that is known."""
    if any(log.shifted for log in logs):
        return None
    held = []
    for log in logs:
        result = log.content["result"]
        for alpha, share in result.get("fpr_at_alpha", {}).items():
            span = result.get("fpr_interval99", {}).get(alpha)
            if share is not None and span is not None:
                held.append(span[0] <= share <= span[1])
    return len(held) - sum(held), len(held)


def _cell(found: Standing | None) -> str:
    return "-" if found is None else f"{found.auroc:.3f} ({found.ci95[0]:.3f} to {found.ci95[1]:.3f})"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
