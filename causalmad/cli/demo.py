"""``causalmad demo``: the main job on a built-in task, offline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from causalmad.cli.console import progress, show
from causalmad.cli.guard import Debug, Quiet, guarded

if TYPE_CHECKING:
    from causalmad.detection import Detection
    from causalmad.evaluation.results import SeedResult
    from causalmad.tasks.base import TaskData

TASK = "induction-lookup[shift=true]"
OURS, BASELINE = "resampling-profile+mahalanobis", "activations+mahalanobis"


@guarded
def demo(
    alpha: Annotated[float, typer.Option(help="Share of normal inputs that may be flagged.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Of the task and the detectors.", min=0)] = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a small model, fit a detector, flag and explain, next to the activation baseline; offline."""
    with progress(quiet) as step:
        step("loading torch", 0, 0)
        from causalmad.config import parse_spec
        from causalmad.evaluation.protocol import evaluate_seed
        from causalmad.names import parse_detector

        step("loading torch", 1, 1)
        data: TaskData = parse_spec("tasks", TASK).load(
            seed, progress=lambda done, total: step(f"training the model of {TASK}", done, total)
        )
        show(*_introduction(data))
        results, detections = {}, {}
        for name in (OURS, BASELINE):
            step(f"fitting {name}, scoring {len(data.test)} inputs", 0, 0)
            results[name], fitted = evaluate_seed(data, parse_detector(name), seed)
            detections[name] = fitted.detect(data.test, alpha=alpha)
            step(f"fitting {name}, scoring {len(data.test)} inputs", 1, 1)
    show("", *_comparison(data, results, detections, alpha), "", *_reasons(data, detections), "", *_further())


def _introduction(data: TaskData) -> list[str]:
    accuracy: Any = data.card.get("accuracy", {})
    right = ", ".join(f"{share:.1%} of {kind}" for kind, share in accuracy.items())
    return [
        f"Task {data.name}: {data.card.get('mechanism', '')}.",
        f"A {type(data.model).__name__}, right on {right} inputs. {len(data.trusted)} trusted inputs use half of the "
        f"vocabulary, {len(data.test)} test inputs all of it; no detector sees a label.",
    ]


def _comparison(
    data: TaskData, results: dict[str, SeedResult], detections: dict[str, Detection], alpha: float
) -> list[Any]:
    """Both detectors side by side, then what the surface alone gives."""
    from rich.table import Table

    found = Table(title=f"Flags at alpha = {alpha:g}", title_justify="left")
    found.add_column("detector")
    for heading in ("AUROC", "anomalies flagged", "normals flagged", "fit s", "score s"):
        found.add_column(heading, justify="right")
    for name, result in results.items():
        flags = detections[name].flags
        shares = (f"{flags[kind].mean():.1%}" for kind in (data.labels, ~data.labels))
        found.add_row(name, f"{result.auroc:.3f}", *shares, f"{result.fit_seconds:.1f}", f"{result.score_seconds:.1f}")
    ours = results[OURS]
    controls = (f"{name} {'none' if value is None else f'{value:.3f}'}" for name, value in ours.controls.items())
    return [found, f"Surface controls, AUROC (0.5 = nothing): {', '.join(controls)}."]


def _reasons(data: TaskData, detections: dict[str, Detection]) -> list[Any]:
    """The most anomalous true anomaly that is flagged, explained, and what the baseline says of it."""
    import numpy as np

    from causalmad.explanation import table

    ours, baseline = detections[OURS], detections[BASELINE]
    hits = np.flatnonzero(data.labels & ours.flags)
    if not len(hits):
        return ["No anomaly was flagged."]
    row = int(hits[np.argmax(ours.scores[hits])])
    reason = ours.reason(row)
    tokens = " ".join(str(int(token)) for token in data.test.main[row])
    verdict = "flags it too" if baseline.flags[row] else "does not flag it"
    return [
        f"Why input {ours.ids[row]} is flagged (tokens {tokens}):",
        table(ours.ids[row], reason.to_data(), 6),
        f"The activation baseline {verdict}: p = {baseline.p_values[row]:.3g}.",
    ]


def _further() -> list[str]:
    return [
        "Where to go next:",
        "  causalmad list                                    what can be combined",
        f"  causalmad evaluate --task '{TASK}' --detector {OURS} --seeds 5",
        "  causalmad fit --model DIR --trusted FILE.jsonl --signature attribution-patching --out detector/",
        "  docs/tutorial/first-detector.md                   the same from Python",
    ]
