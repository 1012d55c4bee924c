"""Writes ``docs/reference/speed.md`` from ``benchmarks/results.json``; it measures nothing.

python benchmarks/speed/page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from causalmad.whole import write_whole

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results.json"
PAGE = HERE.parent.parent / "docs" / "reference" / "speed.md"

INTRODUCTION = """\
What things cost beside the passes that their definitions need. Every figure is a ratio within a round of one process
of {threads} thread(s), in which all sides run in turn; the value is the median over the rounds (or, where a round is a
part of the whole, their mean). *Wall* decides whether a claim holds; *processor* is the same by processor time; *load*
is how many processes wanted a core at the end, this one among them. All rounds are in `benchmarks/results.json`;
`benchmarks/speed/` has one script for each claim, and `python benchmarks/speed/page.py` writes this page.

{processor}, {cores} cores, {memory_gib} GiB. {versions}."""

CURVES = """\
Time and peak memory against the number of inputs, of sites, of tokens and the size of the model, each alone, with the
exponent of the power law fitted to them (1 is linear)."""


def main() -> None:
    """Write the page."""
    data = json.loads(RESULTS.read_text(encoding="utf-8"))
    write_whole(PAGE, [page(data)])


def page(data: dict[str, Any]) -> str:
    """The page in markdown."""
    machine = data["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    words = {**machine, "versions": versions}
    lines = ["# Speed, measured", "", INTRODUCTION.format(**words), ""]
    settings = list(dict.fromkeys(claim["setting"] for claim in data["claims"]))
    for setting in settings:
        lines += [f"## {setting[:1].upper()}{setting[1:]}" if setting else "## Others", "", *_table(data, setting), ""]
    if data.get("curves"):
        lines += ["## How it grows", "", CURVES, ""]
        for curve in data["curves"]:
            lines += _curve(curve)
    return "\n".join(lines).rstrip() + "\n"


def _table(data: dict[str, Any], setting: str) -> list[str]:
    lines = ["| claim | limit | wall | processor | rounds | load | holds |", "|---|---|---|---|---|---|---|"]
    notes = []
    for claim in sorted((c for c in data["claims"] if c["setting"] == setting), key=lambda c: c["limit"] is None):
        limit = "" if claim["limit"] is None else f"{claim.get('direction', 'at most')} {claim['limit']:g}"
        holds = {True: "yes", False: "**no**", None: "not measured" if claim["value"] is None else ""}[claim["holds"]]
        figures = [_number(claim["value"]), _number(claim.get("cpu")), str(claim["runs"]), str(claim.get("load", ""))]
        cells = [claim["name"], limit, *figures, holds]
        if claim.get("note"):
            notes.append(f"- {claim['name']}: {claim['note']}.")
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *notes] if notes else lines


def _curve(curve: dict[str, Any]) -> list[str]:
    lines = [f"### {curve['name']}", "", f"{curve['setting']}.", ""]
    lines += [f"| {curve['of']} | seconds | peak MB |", "|---|---|---|"]
    for point in curve["points"]:
        lines.append(f"| {point['at']} | {_number(point['seconds'])} | {_number(point['megabytes'])} |")
    time, memory = (curve["exponents"][key] for key in ("seconds", "megabytes"))
    return [*lines, "", f"Exponents: time {time:.2f}, memory {memory:.2f}.", ""]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    main()
