"""The cards of tasks side by side, as Markdown for the documentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from causalmad.evaluation.acceptance import Acceptance
from causalmad.evaluation.rules import ACCURACY, INPUT, OUTPUT

_CONTROLS = {
    "output-confidence": "output confidence",
    "output-entropy": "output entropy",
    "input-mahalanobis": "input Mahalanobis",
    "input-knn": "input neighbours",
    "length": "length",
    "activations+mahalanobis": "activations, Mahalanobis",
    "input-skyline": "input skyline",
    "activation-skyline": "activation skyline",
}


def cards_markdown(found: Sequence[Acceptance], command: str) -> str:
    """A page of two tables: what the tasks are, and what was measured on them.

    Args:
        found: one for each task.
        command: what writes the page again.
    """
    what = [
        (
            f"`{each.task}`",
            each.card.get("mechanism", ""),
            each.card.get("size", ""),
            each.card.get("source", ""),
            each.card.get("licence", ""),
        )
        for each in found
    ]
    names = [name for name in _CONTROLS if any(name in each.controls for each in found)]
    measured = [
        (
            f"`{each.task}`",
            str(len(each.seeds)),
            _shares(each, "normal"),
            _shares(each, "anomalous"),
            *(_aurocs(each.controls.get(name)) for name in names),
            each.card.get("surface", ""),
            "accepted" if each.holds else f"not accepted: {', '.join(each.failing)}",
        )
        for each in found
    ]
    heads = ("task", "seeds", "accuracy, normal", "accuracy, anomalous", *(_CONTROLS[name] for name in names))
    return "\n".join(
        [
            "# Tasks",
            "",
            f"Written by `{command}`.",
            "",
            "## What they are",
            "",
            *_table(("task", "mechanism", "size", "source", "licence"), what),
            "",
            "## What was measured",
            "",
            f"Accuracy is the lowest of the seeds, and is to be {ACCURACY:.0%} at least. Controls stand as the mean "
            "AUROC over the seeds, with the range where there are several. Those of the output are to be within "
            f"{OUTPUT:g} of one half, those of the input and the length within {INPUT:g}, or the card says that the "
            "surface tells. The skylines are classifiers that were given the labels: how much there is to find. The "
            "rules are in `causalmad.evaluation.rules`.",
            "",
            *_table((*heads, "surface", "verdict"), measured),
            "",
        ]
    )


def _shares(found: Acceptance, kind: str) -> str:
    values = found.accuracy.get(kind)
    return f"{min(values):.1%}" if values else "not given"


def _aurocs(values: tuple[float | None, ...] | None) -> str:
    """Mean and range."""
    if values is None:
        return "-"
    known = [value for value in values if value is not None]
    if not known:
        return "none"
    spread = f" ({min(known):.2f} to {max(known):.2f})" if len(known) > 1 else ""
    return f"{np.mean(known):.2f}{spread}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        cells = [" ".join(cell.split()).replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
