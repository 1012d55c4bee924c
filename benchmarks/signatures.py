"""Claim: no signature is best everywhere; this is what each one sees on each task, and what it costs.

Every signature of the catalogue on every task, five seeds, scored by the Mahalanobis distance, one- and two-sided.
Results are appended to ``benchmarks/signatures.jsonl``, one line per (task, seed, signature); what is there is not run
again, so a killed run goes on where it was. ``--table`` writes ``docs/reference/signatures.md`` from that file.

    OMP_NUM_THREADS=1 python benchmarks/signatures.py [--processes 2]
    python benchmarks/signatures.py --table
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, median

import numpy as np

from causalmad import open_model
from causalmad.catalogue import catalogue
from causalmad.config import parse_spec
from causalmad.detector import Detector
from causalmad.errors import CausalmadError
from causalmad.evaluation import auroc
from causalmad.evaluation.threads import fitting_threads
from causalmad.models import OpenModel
from causalmad.names import with_hypothesis
from causalmad.provenance import versions
from causalmad.references import Mahalanobis
from causalmad.tasks import TaskData

HERE = Path(__file__).parent
LINES = HERE / "signatures.jsonl"
PAGE = HERE.parent / "docs" / "reference" / "signatures.md"
TASKS = (
    "gate-digits",
    "gate-digits-obfuscated",
    "induction-lookup",
    "induction-lookup[shift=true]",
    "planted-routes",
    "ioi",
    "modular-sum",
)
SEEDS = range(5)
USERS_OWN = ("traced",)  # code of the user's: there is nothing to measure
SIDES = ("one-sided", "two-sided")
INTRODUCTION = """\
`python benchmarks/signatures.py`, {cores} CPU cores, one thread a process, torch {torch}; every figure is in
`benchmarks/signatures.jsonl`. Mean AUROC over the seeds (their number is in the head of each column), each with its
own model, data and fit, under the Mahalanobis distance; 0.5 tells nothing, and in brackets stands the worst seed.
Rows are in the order of their worst task, those that do not apply everywhere below the others. *Cost*: time to score
the test inputs over that of bare forward passes on them, the median over tasks and seeds. *Flagged, shift*: the share
of fresh normal inputs with p <= 0.05 on the shifted task, where the guarantee does not hold. A dash: the signature
does not apply, for the reason below the tables. Signatures run with their defaults; `causal-scrubbing` and
`interchange` get the task's own hypothesis, where it has one."""


def main() -> None:
    """Run what is missing, or write the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--table", action="store_true", help="write the page from the results that are there")
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--only", default="", help="signatures, separated by spaces (options allowed)")
    chosen = options.parse_args()
    if not chosen.table:
        names = tuple(chosen.only.split()) or tuple(e.name for e in catalogue("signatures") if e.name not in USERS_OWN)
        jobs = [(task, seed, names) for seed in SEEDS for task in TASKS]
        with ProcessPoolExecutor(chosen.processes) as pool:
            list(pool.map(measure, *zip(*jobs, strict=True)))
    PAGE.write_text(page(), encoding="utf-8")


def measure(task: str, seed: int, names: tuple[str, ...]) -> None:
    """Append the figures of every signature on one task and seed that has none yet."""
    there = {(row["task"], row["seed"], row["signature"]) for row in _rows()}
    missing = [name for name in names if (task, seed, name) not in there]
    if not missing:
        return
    data = parse_spec("tasks", task).load(seed)
    model = open_model(data.model)
    with fitting_threads(data.model):
        bare = _seconds(lambda: [model.logits(batch) for batch in model.batches(data.test)])
        for name in missing:
            found: dict[str, object] = {"task": task, "seed": seed, "signature": name, "versions": versions()}
            try:
                found |= figures(name, data, model, seed, bare)
            except CausalmadError as error:
                found["refused"] = error.what
            line = json.dumps(found)
            with LINES.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            print(task, seed, name, found.get("auroc", found.get("refused")), flush=True)


def figures(name: str, data: TaskData, model: OpenModel, seed: int, bare: float) -> dict[str, object]:
    """What one signature gives on a loaded task; ``bare``: seconds of bare forward passes over the test inputs."""
    detector = with_hypothesis(Detector(parse_spec("signatures", name), Mahalanobis()), data.hypothesis)
    started = time.perf_counter()
    fitted = detector.fit(model, data.trusted, data.untrusted if detector.compares else None, seed=seed)
    fit_seconds = time.perf_counter() - started
    test = fitted.signature(data.test).values
    score_seconds = time.perf_counter() - started - fit_seconds
    both = Mahalanobis(two_sided=True).fit(fitted.trusted.values)
    scores = {"one-sided": -fitted.reference.score_samples(test), "two-sided": -both.score_samples(test)}
    found = {
        "auroc": {side: auroc(data.labels, scores[side]) for side in SIDES},
        "columns": len(fitted.signature.columns),
        "fit_seconds": fit_seconds,
        "passes": score_seconds / bare,
    }
    if "shift" in data.name:
        p_values = fitted.calibrator.p_values(fitted.score(data.normal))
        found["flagged"] = float((p_values <= 0.05).mean())
    return found


def _seconds(run: object, times: int = 3) -> float:
    """Median of some runs."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        run()  # type: ignore[operator]
        taken.append(time.perf_counter() - started)
    return median(taken)


def page() -> str:
    """The page: worst task first, then every task, the cost and the columns."""
    rows = _rows()
    names = sorted({row["signature"] for row in rows})
    said = next((row["versions"] for row in rows), {})
    lines = ["# Signatures, measured", "", INTRODUCTION.format(cores=os.cpu_count(), torch=said.get("torch")), ""]
    for side in SIDES:
        lines += [f"## {side.capitalize()} distance", "", *_table(rows, names, side), ""]
    lines += ["## Where a signature does not apply", ""]
    for name in sorted(names):
        reasons: dict[str, list[str]] = {}
        for row in rows:
            if row["signature"] == name and "refused" in row and row["task"] not in reasons.get(row["refused"], []):
                reasons.setdefault(row["refused"], []).append(row["task"])
        lines += [f"- `{name}` on {', '.join(f'`{task}`' for task in tasks)}: {why}" for why, tasks in reasons.items()]
    return "\n".join([*lines, ""])


def _table(rows: list[dict], names: list[str], side: str) -> list[str]:
    seeds = {task: len({row["seed"] for row in rows if row["task"] == task}) for task in TASKS}
    tasks = (f"`{task}` ({seeds[task]})" for task in TASKS)
    heads = ("signature", "worst task", *tasks, "flagged, shift", "cost", "columns")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    refused = {row["signature"] for row in rows if "refused" in row}
    for name in sorted(names, key=lambda name: (name in refused, -_worst(rows, name, side))):
        mine = [row for row in rows if row["signature"] == name and "auroc" in row]
        each = [[row["auroc"][side] for row in mine if row["task"] == task] for task in TASKS]
        shifted = [row["flagged"] for row in mine if "shift" in row["task"]]
        columns = sorted({row["columns"] for row in mine})
        cells = [
            f"`{name}`",
            f"{_worst(rows, name, side):.3f}" if mine else "-",
            *(f"{mean(found):.3f} ({min(found):.3f})" if found else "-" for found in each),
            f"{mean(shifted):.3f}" if shifted else "-",
            f"{median(row['passes'] for row in mine):.1f}" if mine else "-",
            (f"{columns[0]}" if len(columns) == 1 else f"{columns[0]}-{columns[-1]}") if columns else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _worst(rows: list[dict], name: str, side: str) -> float:
    """Mean AUROC over seeds on the worst task."""
    each: dict[str, list[float]] = {}
    for row in rows:
        if row["signature"] == name and "auroc" in row:
            each.setdefault(row["task"], []).append(row["auroc"][side])
    return float(np.min([mean(found) for found in each.values()])) if each else -1.0


def _rows() -> list[dict]:
    if not LINES.exists():
        return []
    return [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
