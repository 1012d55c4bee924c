"""The rules of acceptance, and what keeps them: limits of what was measured on each load of a task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from causalmad.evaluation.loads import FEWEST, Load

OUTPUT_CONTROLS = ("output-confidence", "output-entropy")
INPUT_CONTROLS = ("input-mahalanobis", "input-knn", "length")
DETECTORS = (
    "activations+mahalanobis",
    "activations+mahalanobis[two_sided=true]",
    "input-skyline",
    "activation-skyline",
)
ACCURACY, OUTPUT, INPUT = 0.95, 0.1, 0.15  # least share of right answers; furthest of an AUROC from a half


@dataclass(frozen=True)
class Rule:
    """One thing that a task has to keep.

    Attributes:
        name: what is measured.
        value: the worst of the seeds; None where nothing could be measured.
        low: the least that is allowed, if there is one.
        high: the most that is allowed, if there is one.
        holds: whether it is kept for all seeds.
        note: what else is to be said.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    holds: bool
    note: str = ""

    @property
    def limit(self) -> str:
        """What is allowed, in words."""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        if self.low is not None:
            return f"at least {self.low:g}"
        return f"at most {self.high:g}" if self.high is not None else "none"


def right(loads: list[Load]) -> Iterator[Rule]:
    """Rules of the model: it answers both kinds rightly."""
    for kind in ("normal", "anomalous"):
        values = [
            min((share for key, share in load.accuracy.items() if key.partition(" ")[0] == kind), default=None)
            for load in loads
        ]
        yield _rule(f"accuracy, {kind}", values, ACCURACY, None, "" if None not in values else "the card gives none")
    modes = [float(load.training) for load in loads]
    yield _rule("modules not in eval mode", modes, None, 0)


def surface(loads: list[Load]) -> Iterator[Rule]:
    """Rules of the surface: neither the output nor the input tells the kind, or the card says so."""
    for name in (*OUTPUT_CONTROLS, *INPUT_CONTROLS):
        if name == "length" and not any(name in load.controls for load in loads):
            continue  # all inputs are of one length
        reach = OUTPUT if name in OUTPUT_CONTROLS else INPUT
        values = [load.controls.get(name) for load in loads]
        rule = _rule(f"AUROC of {name}", values, 0.5 - reach, 0.5 + reach)
        if name in INPUT_CONTROLS and not rule.holds:
            outside = [load for load, value in zip(loads, values) if value is None or abs(value - 0.5) > reach]
            if outside and all(plainness(load) for load in outside):
                said = max(outside, key=plainness).card["surface"]
                rule = Rule(rule.name, rule.value, None, None, True, f"the card says: {said}")
        yield rule


def null(loads: list[Load]) -> Iterator[Rule]:
    """Rules of a null version, whose card says that it is one: not even a classifier with the labels tells anything."""
    if not any("null" in load.card for load in loads):
        return
    for name in DETECTORS:
        yield _rule(f"AUROC of {name}", [load.controls.get(name) for load in loads], 0.5 - OUTPUT, 0.5 + OUTPUT)


def plainness(load: Load) -> int:
    """How plainly a card says that the surface gives anomalies away: 0 where it does not."""
    text = load.card.get("surface", "")
    return 2 if text.startswith("solvable") else 1 if text.startswith("partly solvable") else 0


def sound(loads: list[Load]) -> Iterator[Rule]:
    """Rules of the data: nothing twice, both kinds, the same bits every time."""
    yield _rule("contents in two parts", [float(load.shared) for load in loads], None, 0)
    yield _rule("ids that stand twice", [float(load.twice) for load in loads], None, 0)
    yield _rule("test inputs of the rarer kind", [float(load.fewest) for load in loads], FEWEST, None)
    changed = sorted({name for load in loads for name in load.changed})
    values = [float(len(load.changed)) for load in loads]
    yield _rule("changed when the seed is loaded again", values, None, 0, ", ".join(changed))


def another(loads: list[Load]) -> Rule:
    """The rule that other seeds are other data."""
    new = []
    for one, other in pairwise(loads):
        mine, theirs = (
            {content for part in ("trusted", "test") for content in load.contents[part]} for load in (one, other)
        )
        new.append(len(mine - theirs) / len(mine))
    return _rule("share of inputs that another seed does not have", new, 0.5, None)


def _rule(
    name: str, values: list[float | None] | list[float], low: float | None, high: float | None, note: str = ""
) -> Rule:
    """The worst of the seeds' values against the limits; what could not be measured is not kept."""

    def excess(value: float) -> float:
        below = -np.inf if low is None else low - value
        above = -np.inf if high is None else value - high
        return float(max(below, above))

    known = [value for value in values if value is not None and np.isfinite(value)]
    worst = max(known, key=excess, default=None)
    holds = len(known) == len(values) and worst is not None and excess(worst) <= 0
    return Rule(name, worst, low, high, holds, note or ("" if known else "not measured"))
