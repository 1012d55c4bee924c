"""The protocol: fit on trusted inputs of a task, score its test inputs, count false alarms on fresh normal ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from causalmad.calibration.conformal import Conformal
from causalmad.calibration.interval import beta_binomial_interval
from causalmad.config import parse_spec
from causalmad.detector import Detector, FittedDetector
from causalmad.errors import CalibrationError, SpecError
from causalmad.evaluation.controls import control_aurocs
from causalmad.evaluation.memo import Memo
from causalmad.evaluation.metrics import auroc, average_precision, tpr_at_fpr
from causalmad.evaluation.results import Evaluation, SeedResult
from causalmad.evaluation.threads import fitting_threads
from causalmad.extraction.cache import Keeps
from causalmad.models import OpenModel, open_model
from causalmad.models.batching import Told
from causalmad.names import detector_text, parse_detector, with_hypothesis
from causalmad.provenance import versions
from causalmad.tasks.base import Task, TaskData

Floats = npt.NDArray[np.float64]

RATES = ("0.01", "0.05")

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all); 0 steps in all = their number is not known."""


def evaluate(
    task: str | Task,
    detector: str | Detector,
    seeds: int | Iterable[int] = 5,
    *,
    progress: Progress | None = None,
    cache: Keeps = None,
) -> Evaluation:
    """A detector on a task, over several seeds; each has its own model, data and fit, and the controls beside it.

    A task of your own files has one model and one set of test inputs for all seeds: they then differ in the fit alone.

    Args:
        task: a task, or its text such as ``induction-lookup[shift=true]``.
        detector: a detector, its text such as ``activations+mahalanobis``, or a ready-made one's name.
        seeds: how many (from 0 on), or which.
        progress: called with what is being done.
        cache: a folder that keeps signatures, see :func:`causalmad.extract`; the times are then those of a reading.

    Raises:
        SpecError: on unknown names or options, or no seeds.
        TaskError: when a task's model does not learn what it should.
    """
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen or len(set(chosen)) != len(chosen):
        raise SpecError(f"seeds={seeds!r}", needed="at least one seed, each once", tries=["seeds=5", "seeds=(0, 1, 2)"])
    spec: Task = parse_spec("tasks", task) if isinstance(task, str) else task
    parts = parse_detector(detector) if isinstance(detector, str) else detector
    say = progress or _silent
    results, name, tested = [], "", set[str]()
    for seed in chosen:
        data = spec.load(seed, progress=lambda done, total, seed=seed: say(f"seed {seed}: training", done, total))  # type: ignore[misc]
        what = f"seed {seed}: fitting and scoring"
        say(what, 0, 0)
        results.append(evaluate_seed(data, parts, seed, cache=cache, told=partial(say, what))[0])
        say(what, 1, 1)
        name = data.name
        tested.add("".join(data.test.digests))
    wanted = task if isinstance(task, str) else name
    text = detector if isinstance(detector, str) else detector_text(parts)
    shared = bool(getattr(spec, "outside", False)) and len(tested) == 1
    return Evaluation(wanted, text, tuple(results), versions(), shared)


def evaluate_seed(
    data: TaskData,
    detector: Detector,
    seed: int = 0,
    *,
    controls: Mapping[str, float | None] | None = None,
    memo: Memo | None = None,
    cache: Keeps = None,
    told: Told | None = None,
) -> tuple[SeedResult, FittedDetector]:
    """The numbers of a detector on a loaded task, and the fitted detector; labels are used for the metrics only.

    A signature that tests a hypothesis and has none is given the task's own.

    Args:
        data: what the task's ``load`` gave.
        detector: what is fitted.
        seed: of the fit.
        controls: AUROC of the surface controls, where they are known already.
        memo: of this task and seed: signatures that are in it are not computed again, and their time is counted.
        cache: a folder that keeps signatures.
        told: called with (inputs that went by, inputs in all) in every round over inputs.
    """
    opened = open_model(data.model)
    with fitting_threads(data.model), opened.batching.watched(told):
        return _evaluate_seed(data, opened, with_hypothesis(detector, data.hypothesis), seed, controls, memo, cache)


def _evaluate_seed(
    data: TaskData,
    model: OpenModel,
    detector: Detector,
    seed: int,
    controls: Mapping[str, float | None] | None,
    memo: Memo | None,
    cache: Keeps,
) -> tuple[SeedResult, FittedDetector]:
    started = _now(memo)
    remembering = detector if memo is None else memo.of(detector)
    pool = data.untrusted if detector.compares else None
    fitted = remembering.fit(model, data.trusted, pool, seed=seed, cache=cache)
    fit_seconds = _now(memo) - started
    started = _now(memo)
    found = fitted.detect(data.test, _reachable(fitted), cache=cache)
    scores = found.scores
    score_seconds = _now(memo) - started
    sizes = {
        "trusted": len(data.trusted),
        "calibration": len(fitted.provenance["ids"]["calibration"]),
        "test": len(data.test),
        "normal": len(data.normal),
    }
    normal = fitted.detect(data.normal, _reachable(fitted), cache=cache).p_values
    shares, intervals, notes = _false_alarms(fitted, normal, sizes["calibration"])
    accuracy = data.card.get("accuracy", {})
    result = SeedResult(
        seed,
        auroc(data.labels, scores),
        average_precision(data.labels, scores),
        {rate: tpr_at_fpr(data.labels, scores, float(rate)) for rate in RATES},
        shares,
        intervals,
        fit_seconds,
        score_seconds,
        sizes,
        control_aurocs(data, seed) if controls is None else controls,
        accuracy if isinstance(accuracy, Mapping) else {"all": accuracy},
        notes,
        _subsets(data, scores),
        scores,
        found.p_values,
        normal,
        data.labels,
    )
    return result, fitted


def _now(memo: Memo | None) -> float:
    """A clock that counts what a memo spared as if it had been done."""
    return time.perf_counter() + (0.0 if memo is None else memo.spared)


def _reachable(fitted: FittedDetector) -> float:
    """An alpha that the calibration set allows: p-values are wanted here, whatever is flagged."""
    return min(max(0.05, fitted.calibrator.smallest), 0.99)


def _subsets(data: TaskData, scores: Floats) -> dict[str, float]:
    """AUROC within each value of the test inputs' column ``subset``, for tasks that divide their inputs."""
    named = data.test.columns.get("subset")
    if named is None:
        return {}
    parts = {str(value): np.asarray(named == value) for value in np.unique(named)}
    both = {value: rows for value, rows in parts.items() if len(np.unique(data.labels[rows])) == 2}
    return {value: auroc(data.labels[rows], scores[rows]) for value, rows in both.items()}


def _false_alarms(
    fitted: FittedDetector, p_values: Floats, held_out: int
) -> tuple[dict[str, float | None], dict[str, tuple[float, float] | None], tuple[str, ...]]:
    """Share of fresh normal inputs flagged per alpha, the interval in which it should lie, and what to say about it."""
    shares: dict[str, float | None] = {}
    intervals: dict[str, Any] = {}
    notes = []
    for text in RATES:
        alpha = float(text)
        try:
            fitted.calibrator.require(alpha)
            shares[text] = float((p_values <= alpha).mean())
            # Known for plain conformal p-values alone: the others promise more, less or something else.
            plain = isinstance(fitted.spec.calibrator, Conformal)
            intervals[text] = beta_binomial_interval(held_out, len(p_values), alpha, 0.99) if plain else None
        except CalibrationError as error:
            shares[text] = intervals[text] = None
            notes.append(error.what)
    return shares, intervals, tuple(notes)


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""
