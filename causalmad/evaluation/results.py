"""What an evaluation gives: numbers per seed, their mean, and the controls beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.evaluation.bootstrap import DRAWS, Scored, task_draws
from causalmad.evaluation.metrics import interval95

SKYLINES = ("input-skyline", "activation-skyline")  # controls that are given the labels

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SeedResult:
    """A detector on a task, for one seed: its own model, data and fit.

    Attributes:
        seed: of the task and of the detector.
        auroc: chance that an anomalous test input scores above a normal one.
        average_precision: area under the precision-recall curve.
        tpr_at_fpr: share of normal test inputs, as text -> share of anomalies found at that threshold.
        fpr_at_alpha: alpha, as text -> share of fresh normal inputs flagged; None where alpha is out of reach.
        fpr_interval99: alpha -> interval that holds this share for 99 % of calibration and test sets of these sizes,
            when normal inputs are exchangeable with trusted ones; None where alpha is out of reach, or the
            calibrator is not the plain conformal one, of which alone it is known.
        fit_seconds: wall time of the fit.
        score_seconds: wall time of scoring the test inputs.
        sizes: how many inputs there were: ``trusted``, ``calibration``, ``test``, ``normal``.
        controls: name of a surface control -> its AUROC on the same test inputs; None where it could not be fitted.
        accuracy: kind of input -> share that the model answers right, from the task's card.
        notes: what a reader of the numbers has to know.
        subsets: value of the test inputs' column ``subset`` -> AUROC on those inputs alone, where both kinds are there.
        scores: (n_test,) anomaly scores of the test inputs.
        p_values: (n_test,) their p-values.
        normal_p_values: (n_normal,) p-values of the fresh normal inputs.
        labels: (n_test,) True = anomalous.
    """

    seed: int
    auroc: float
    average_precision: float
    tpr_at_fpr: Mapping[str, float]
    fpr_at_alpha: Mapping[str, float | None]
    fpr_interval99: Mapping[str, tuple[float, float] | None]
    fit_seconds: float
    score_seconds: float
    sizes: Mapping[str, int]
    controls: Mapping[str, float | None]
    accuracy: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    subsets: Mapping[str, float] = field(default_factory=dict)
    scores: Floats = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    p_values: Floats = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    normal_p_values: Floats = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    labels: Flags = field(default_factory=lambda: np.empty(0, dtype=bool), repr=False, compare=False)

    def to_data(self) -> dict[str, Any]:
        """The numbers as JSON data; the controls stand with the evaluation, single inputs in a log."""
        intervals = {alpha: None if pair is None else list(pair) for alpha, pair in self.fpr_interval99.items()}
        return {
            "seed": self.seed,
            "auroc": self.auroc,
            "average_precision": self.average_precision,
            "tpr_at_fpr": dict(self.tpr_at_fpr),
            "fpr_at_alpha": dict(self.fpr_at_alpha),
            "fpr_interval99": intervals,
            "fit_seconds": round(self.fit_seconds, 3),
            "score_seconds": round(self.score_seconds, 3),
            "sizes": dict(self.sizes),
            "accuracy": dict(self.accuracy),
            "notes": list(self.notes),
            "subsets": dict(self.subsets),
        }


@dataclass(frozen=True)
class Evaluation:
    """A detector on a task, over several seeds.

    Attributes:
        task: the task as it is written on the command line.
        detector: the detector as it is written there.
        seeds: one result each.
        versions: of what the numbers depend on.
        shared: whether all seeds have the model and the test inputs in common, as with files of one's own. The seeds
            then tell nothing of what other test inputs would have changed.
    """

    task: str
    detector: str
    seeds: tuple[SeedResult, ...]
    versions: Mapping[str, str]
    shared: bool = False

    @property
    def auroc(self) -> float:
        """Mean AUROC over the seeds."""
        return float(np.mean([result.auroc for result in self.seeds]))

    @property
    def worst(self) -> float:
        """The lowest AUROC of any seed."""
        return min(result.auroc for result in self.seeds)

    @property
    def controls(self) -> dict[str, tuple[float | None, ...]]:
        """Name of a surface control -> its AUROC for each seed; None where it could not be fitted or does not apply."""
        names = dict.fromkeys(name for result in self.seeds for name in result.controls)
        return {name: tuple(result.controls.get(name) for result in self.seeds) for name in names}

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean AUROC, within 0 and 1; (nan, nan) where it is not known.

        Where every seed has its own model and test inputs, Student's over the seeds, which takes two of them. Where all
        share these, a bootstrap over test inputs and seeds, for this one model.
        """
        return shared_interval([Scored(r.labels, r.scores) for r in self.seeds]) if self.shared else _over_seeds(self)

    def to_data(self) -> dict[str, Any]:
        """The evaluation as JSON data; an interval that is not known is ``[null, null]``."""
        return {
            "task": self.task,
            "detector": self.detector,
            "seeds": [result.to_data() for result in self.seeds],
            "auroc": {"mean": self.auroc, "ci95": _ends(self.interval), "worst": self.worst},
            "controls": {
                name: {**_summary(values, self.shared), "seeds": list(values)} for name, values in self.controls.items()
            },
            "versions": dict(self.versions),
        }

    def __str__(self) -> str:
        """The evaluation as plain text."""
        from causalmad.explanation import plain

        return "\n".join(plain(table) for table in self.tables())

    def _repr_html_(self) -> str:
        """The evaluation as tables for notebooks."""
        from causalmad.plots.tables import to_html

        return to_html(*self.tables())

    def tables(self) -> tuple[Any, Any]:
        """Rich tables: the seeds, and the detector among the controls."""
        from rich.table import Table
        from rich.text import Text  # square brackets in a name are no markup

        alphas = list(self.seeds[0].fpr_at_alpha)
        rates = list(self.seeds[0].tpr_at_fpr)
        notes = dict.fromkeys(note for result in self.seeds for note in result.notes)
        title = f"{self.detector} on {self.task}"
        each = Table(
            title=Text(title),
            caption=Text("\n".join(notes)) if notes else None,
            title_justify="left",
            caption_justify="left",
        )
        headings = [
            "AUROC",
            "AP",
            *(f"TPR at FPR {r}" for r in rates),
            *(f"false flags at {a} and 99 % interval" for a in alphas),
        ]
        for heading in ("seed", *headings, "fit s", "score s"):
            each.add_column(heading, justify="right")
        for result in self.seeds:
            flagged = [_flagged(share, result.fpr_interval99.get(a)) for a, share in result.fpr_at_alpha.items()]
            times = (f"{result.fit_seconds:.1f}", f"{result.score_seconds:.1f}")
            numbers = map(_number, (result.auroc, result.average_precision, *result.tpr_at_fpr.values()))
            each.add_row(str(result.seed), *numbers, *flagged, *times)
        both = Table(title="AUROC beside the surface controls", title_justify="left")
        for heading, side in (("", "left"), ("mean", "right"), ("95 % interval", "right"), ("lowest", "right")):
            both.add_column(heading, justify=side)  # type: ignore[arg-type]
        ours = {"mean": self.auroc, "ci95": _ends(self.interval)}
        both.add_row(Text(f"{self.detector} (this detector)"), *_cells(ours, [result.auroc for result in self.seeds]))
        for name, values in self.controls.items():
            both.add_row(Text(said(name)), *_cells(_summary(values, self.shared), values))
        return each, both


def said(control: str) -> str:
    """A control as it is printed: those that are given the labels say so."""
    return f"{control} (uses labels)" if control in SKYLINES else control


def shared_interval(seeds: Sequence[Scored], *, draws: int = DRAWS) -> tuple[float, float]:
    """95 % percentile interval of the mean AUROC of several fits that were scored on the same test inputs.

    Each draw takes as many test inputs of either kind with replacement, the same for all fits, and as many fits as
    there are. Draws of their own for each fit would count the same inputs several times.

    Args:
        seeds: one for each fit, with the same labels in the same order.
        draws: how many.
    """
    each = np.concatenate([task_draws([[one]], draws=draws) for one in seeds], axis=1)  # equal seeds: the same inputs
    chosen = np.random.default_rng(1).integers(0, len(seeds), each.shape)
    low, high = np.percentile(np.take_along_axis(each, chosen, axis=1).mean(1), [2.5, 97.5])
    return float(low), float(high)


def _over_seeds(found: Evaluation) -> tuple[float, float]:
    return _clipped(interval95([result.auroc for result in found.seeds]))


def _clipped(ends: tuple[float, float]) -> tuple[float, float]:
    """An interval of an AUROC, which is nowhere else than from 0 to 1; NaN stays."""
    return float(np.clip(ends[0], 0, 1)), float(np.clip(ends[1], 0, 1))


def _ends(interval: tuple[float, float]) -> list[float | None]:
    return [None if math.isnan(end) else end for end in interval]


def _summary(values: tuple[float | None, ...], shared: bool) -> dict[str, Any]:
    """Mean and interval of a control's values; on shared test inputs they are no independent ones."""
    found = [value for value in values if value is not None]
    if not found:
        return {"mean": None, "ci95": [None, None]}
    ends = [None, None] if shared else _ends(_clipped(interval95(found)))
    return {"mean": float(np.mean(found)), "ci95": ends}


def _cells(summary: Mapping[str, Any], values: Sequence[float | None]) -> tuple[str, str, str]:
    low, high = summary["ci95"]
    found = [value for value in values if value is not None]
    span = "" if low is None else f"{low:.3f} to {high:.3f}"
    return _number(summary["mean"]), span, _number(min(found) if found else None)


def _flagged(share: float | None, interval: tuple[float, float] | None) -> str:
    """A share of normal inputs flagged; below it where 99 % of such shares lie, if that is known."""
    return _number(share) if interval is None else f"{_number(share)}\n{interval[0]:.3f} to {interval[1]:.3f}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
