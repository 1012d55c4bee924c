"""Claim: profiles of what an output depends on keep their power where activations lose it.

Evaluates every detector below on every task, five seeds each, beside the surface controls, and writes one JSON file
per pair to ``benchmarks/results``; a pair whose file exists is not run again. ``--table`` prints the README's table
from the files that are there.

    python benchmarks/detectors_on_tasks.py
    python benchmarks/detectors_on_tasks.py --table
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import causalmad.evaluation as evaluation

RESULTS = Path(__file__).parent / "results"
TASKS = ("gate-digits", "gate-digits-obfuscated", "induction-lookup", "induction-lookup[shift=true]")
CLAIMED = ("planted-routes", "ioi", "modular-sum")
GENERAL = ("resampling-profile+mahalanobis", "attribution-patching+mahalanobis", "activations+mahalanobis")
HYPOTHESES = ("causal-scrubbing+mahalanobis", "interchange+mahalanobis")
CIRCUIT = "sufficiency+mahalanobis"
PAIRS = (
    *((task, detector) for task in TASKS for detector in GENERAL),
    ("gate-digits-obfuscated", "attribution-patching[units=blocks]+mahalanobis"),
    *((task, CIRCUIT) for task in TASKS[2:]),
    *((task, detector) for task in CLAIMED for detector in (*GENERAL, *HYPOTHESES)),
)


def main() -> None:
    """Run what is missing, or print the table."""
    if "--table" in sys.argv[1:]:
        print("\n".join(table()))
        return
    RESULTS.mkdir(exist_ok=True)
    for task, detector in PAIRS:
        path = RESULTS / f"{task}.{detector}.json"
        if not path.exists():
            found = evaluation.evaluate(task, detector, 5)
            path.write_text(json.dumps(found.to_data(), indent=1), encoding="utf-8")
            print(f"{task:32s} {detector:48s} {found.auroc:.3f} (worst {found.worst:.3f})", flush=True)


def table() -> list[str]:
    """Markdown lines: task, detector, AUROC with its interval, worst seed, and false flags at alpha = 0.05."""
    heads = ("task", "detector", "AUROC, 5 seeds (95 % interval)", "worst seed", "normals flagged at 0.05")
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|---|"]
    for task, detector in PAIRS:
        path = RESULTS / f"{task}.{detector}.json"
        if path.exists():
            data = json.loads(path.read_text(encoding="utf-8"))
            low, high = data["auroc"]["ci95"]
            flagged = sum(seed["fpr_at_alpha"]["0.05"] for seed in data["seeds"]) / len(data["seeds"])
            lines.append(
                f"| `{task}` | `{detector}` | {data['auroc']['mean']:.3f} ({low:.3f} to {min(high, 1.0):.3f}) "
                f"| {data['auroc']['worst']:.3f} | {flagged:.3f} |"
            )
    return lines


if __name__ == "__main__":
    main()
