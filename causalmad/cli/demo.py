"""``causalmad demo``: the main job on a built-in task, offline."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causalmad.cli import reports
from causalmad.cli.console import progress, show
from causalmad.cli.files import STANDARD, Json, require_file, write_json
from causalmad.cli.guard import Debug, Quiet, guarded

if TYPE_CHECKING:
    from causalmad.detection import Detection
    from causalmad.evaluation.results import SeedResult
    from causalmad.tasks.base import TaskData

TASK = "induction-lookup[shift=true]"
ALPHA = "0.01"
REPORT = "report.html"
OURS, BASELINE = "resampling-profile+mahalanobis", "activations+mahalanobis"


@guarded
def demo(
    seed: Annotated[int, typer.Option(help="Of the task and the detectors.", min=0)] = 0,
    report: Annotated[
        str | None,
        typer.Option(help="Where the page of HTML goes.", show_default=REPORT, metavar="FILE"),
    ] = None,
    as_json: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a small model, fit a detector, flag, explain and report, next to the activation baseline; offline."""
    if as_json is not None:
        require_file(as_json)
    wanted = reports.offer(report or REPORT, asked=report is not None, quiet=quiet)
    aloud = as_json != STANDARD
    with progress(quiet) as step:
        step("loading torch", 0, 0)
        from causalmad.config import parse_spec
        from causalmad.evaluation.protocol import evaluate_seed
        from causalmad.evaluation.threads import fitting_threads
        from causalmad.names import parse_detector

        step("loading torch", 1, 1)
        data: TaskData = parse_spec("tasks", TASK).load(
            seed, progress=lambda done, total: step(f"training the model of {TASK}", done, total)
        )
    if aloud:
        show(*_introduction(data))
    with progress(quiet) as step:
        results, detections, detectors = {}, {}, {}
        for name in (OURS, BASELINE):
            what = f"fitting {name}, scoring {len(data.test)} inputs"
            step(what, 0, 0)
            told = partial(step, what)
            results[name], detectors[name] = evaluate_seed(data, parse_detector(name), seed, told=told)
            with fitting_threads(data.model), detectors[name].model.batching.watched(told):
                detections[name] = detectors[name].detect(data.test, alpha=float(ALPHA))
            step(what, 1, 1)
        if wanted is not None:
            step("writing the report", 0, 0)
            reports.write(
                wanted,
                detections[OURS],
                inputs=data.test,
                labels=data.labels,
                normal=results[OURS].normal_p_values,
                title=f"{OURS} on {data.name}",
                detector=detectors[OURS],
            )
            step("writing the report", 1, 1)
    if as_json is not None:
        write_json(as_json, _numbers(data, results, detections, wanted))
    if aloud:
        show("", *_comparison(data, results, detections), "", *_reasons(data, results, detections), "")
        show(*([f"All of it, with plots: {wanted}", ""] if wanted is not None else []), *_further())


def _numbers(
    data: TaskData, results: dict[str, SeedResult], detections: dict[str, Detection], report: str | None
) -> dict[str, Any]:
    flagged = {name: int(found.flags[data.labels].sum()) for name, found in detections.items()}
    each = {name: {**result.to_data(), "anomalies_flagged": flagged[name]} for name, result in results.items()}
    kinds = {"anomalies": int(data.labels.sum()), "controls": dict(results[OURS].controls)}
    return {"task": data.name, "alpha": float(ALPHA), **kinds, "detectors": each, "report": report}


def _introduction(data: TaskData) -> list[str]:
    accuracy: Any = data.card.get("accuracy", {})
    right = ", ".join(f"{share:.1%} of {kind}" for kind, share in accuracy.items())
    return [
        f"Task {data.name}: {data.card.get('mechanism', '')}.",
        f"A {type(data.model).__name__}, right on {right} inputs. {len(data.trusted)} trusted inputs use half of the "
        f"vocabulary, {len(data.test)} test inputs all of it; no detector sees a label.",
    ]


def _comparison(data: TaskData, results: dict[str, SeedResult], detections: dict[str, Detection]) -> list[Any]:
    """Both detectors side by side, then what the surface alone gives."""
    from rich.table import Table

    from causalmad.evaluation.results import said

    found = Table(title=f"Flags at alpha = {ALPHA}", title_justify="left")
    found.add_column("detector")
    for heading in ("AUROC", "anomalies flagged", "normals flagged", "fit s", "score s"):
        found.add_column(heading, justify="right")
    for name, result in results.items():
        hits = detections[name].flags[data.labels].mean()
        times = (f"{result.fit_seconds:.1f}", f"{result.score_seconds:.1f}")
        found.add_row(name, f"{result.auroc:.3f}", f"{hits:.1%}", _false_alarms(result), *times)
    controls = (f"{said(name)} {'none' if v is None else f'{v:.3f}'}" for name, v in results[OURS].controls.items())
    return [
        found,
        f"Normals are {len(data.normal)} new ones. They are not exchangeable with the trusted inputs (the vocabulary "
        f"differs), so more than alpha may be flagged: how many more is how far a detector mistakes the shift for an "
        "anomaly.",
        f"Surface controls, AUROC (0.5 = they tell nothing): {', '.join(controls)}.",
    ]


def _false_alarms(result: SeedResult) -> str:
    share = result.fpr_at_alpha[ALPHA]
    return "none" if share is None else f"{share:.1%}"


def _reasons(data: TaskData, results: dict[str, SeedResult], detections: dict[str, Detection]) -> list[Any]:
    """The flagged anomaly that scores highest, explained, and what the baseline says of it."""
    import numpy as np

    from causalmad.explanation import table

    ours, baseline = detections[OURS], detections[BASELINE]
    hits = np.flatnonzero(data.labels & ours.flags)
    if not len(hits):
        return ["No anomaly was flagged."]
    row = int(hits[np.argmax(ours.scores[hits])])
    tokens = " ".join(str(int(token)) for token in data.test.main[row])
    verdict = f"does not flag it (p = {baseline.p_values[row]:.2g})."
    if baseline.flags[row]:
        verdict = f"flags it as well, like {_false_alarms(results[BASELINE])} of the normal inputs."
    return [
        f"Why input {ours.ids[row]} is flagged (tokens {tokens}):",
        table(ours.ids[row], ours.reason(row).to_data(), 6),
        f"The activation baseline {verdict}",
    ]


def _further() -> list[str]:
    return [
        "Where to go next:",
        "  causalmad list                                    what can be combined",
        f"  causalmad evaluate --task '{TASK}' --detector {OURS} --seeds 5",
        "  causalmad fit --model DIR --trusted FILE.jsonl --signature attribution-patching --out detector/",
        "  docs/tutorial/first-detector.md                   the same from Python",
    ]
