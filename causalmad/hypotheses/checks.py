"""Checking a hypothesis on a model and trusted inputs: every defect at once, and what it preserves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import networkx as nx

from causalmad.errors import CausalmadError, HypothesisError
from causalmad.hypotheses.graph import OUTPUT, Hypothesis, problems_error
from causalmad.hypotheses.scrubbing import Scrubbed, scrub, sites_of
from causalmad.inputs import Inputs
from causalmad.models import OpenModel, open_model


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        name: the hypothesis.
        problems: defects, one line each; with any of them the claim cannot be tested as written.
        donors: claim -> (number of distinct values, fewest donors of a value).
        preserved: how much of the trusted behaviour the claim preserves; None when it cannot be tested.
    """

    name: str
    problems: tuple[str, ...]
    donors: dict[str, tuple[int, int]]
    preserved: Scrubbed | None

    @property
    def ok(self) -> bool:
        """Whether there are no defects."""
        return not self.problems

    def require(self) -> None:
        """Raise a HypothesisError with all defects, if there are any."""
        if self.problems:
            raise problems_error(self.name, list(self.problems))

    def __str__(self) -> str:
        """The report as text."""
        lines = [f"{self.name}: {len(self.problems) or 'no'} problem{'' if len(self.problems) == 1 else 's'}"]
        lines += [f"  {problem}" for problem in self.problems]
        lines += [f"  {name}: {n} values, at least {least} donors each" for name, (n, least) in self.donors.items()]
        if self.preserved is not None:
            low, high = self.preserved.interval
            kept = f"{self.preserved.recovered:.1%} (95 % interval {low:.1%} to {high:.1%})"
            lines.append(f"  behaviour preserved: {kept}")
        return "\n".join(lines)


def check(hypothesis: Hypothesis, model: Any, trusted: Any, *, draws: int = 4, seed: int = 0) -> Report:
    """Every defect of a claim at once, and the share of trusted behaviour that it preserves.

    Reported are unknown sites (nearest three names), sites that contradict the direction of an edge, values that fail,
    that are no values, that never vary, or that have no donors, and claims without a value. (Cycles and unreachable
    nodes are refused when the hypothesis is made.)

    Args:
        hypothesis: the claim.
        model: whatever :func:`causalmad.open_model` takes.
        trusted: trusted inputs.
        draws: scrubs per input for the share of behaviour preserved.
        seed: decides the draws.
    """
    opened = open_model(model)
    inputs = opened.inputs(trusted)
    problems = _site_problems(hypothesis, opened, inputs)
    values, found = _value_problems(hypothesis, inputs)
    problems += found
    donors = {name: (len(counts), min(counts.values()) - 1) for name, counts in values.items() if counts}
    preserved = None
    if not problems and all(claim.value is not None for claim in hypothesis.claims):
        preserved = scrub(opened, hypothesis, inputs, draws=draws, seed=seed)
    return Report(hypothesis.name, tuple(problems), donors, preserved)


def _site_problems(hypothesis: Hypothesis, model: OpenModel, inputs: Inputs) -> list[str]:
    problems = []
    for claim in hypothesis.claims:
        for text in claim.at:
            try:
                model.sites(text)
            except CausalmadError as error:
                problems.append(f"node {claim.name!r}: " + "; ".join(str(error).splitlines()).replace(";   ", "; "))
    if problems:
        return problems
    order = _order(hypothesis, model, inputs)
    graph = hypothesis.to_networkx()
    for cause, effect in nx.DiGraph(graph).edges:
        if effect != OUTPUT and max(order[cause]) >= min(order[effect]):
            problems.append(f"edge {cause!r} -> {effect!r}: a site of {cause!r} runs after one of {effect!r}")
    return problems


def _order(hypothesis: Hypothesis, model: OpenModel, inputs: Inputs) -> dict[str, list[int]]:
    """Claim -> when its sites run, read off one run of the model."""
    sites = sites_of(model, hypothesis)
    seen: list[Any] = []
    places = list(dict.fromkeys(site.place for found in sites.values() for site in found))

    def note(place: Any) -> Any:
        def edit(value: Any) -> Any:
            seen.append(place)
            return value

        return edit

    (batch,) = model.batches(inputs[:1])
    model.run(batch, edits={place: note(place) for place in places})
    return {name: [seen.index(site.place) for site in found] for name, found in sites.items()}


def _value_problems(hypothesis: Hypothesis, inputs: Inputs) -> tuple[dict[str, Counter[Any]], list[str]]:
    counts: dict[str, Counter[Any]] = {}
    problems = []
    for claim in hypothesis.claims:
        if claim.value is None:
            continue
        try:
            found = [claim.of(inputs.row(i)) for i in range(len(inputs))]
        except HypothesisError as error:
            problems.append("; ".join(line.strip() for line in str(error).splitlines()))
            continue
        counts[claim.name] = Counter(found)
        alone = sum(1 for count in counts[claim.name].values() if count == 1)
        if len(counts[claim.name]) == 1 and len(inputs) > 1:
            problems.append(f"node {claim.name!r}: value() is the same for all {len(inputs)} trusted inputs")
        elif alone:
            problems.append(
                f"node {claim.name!r}: value() is unique for {alone} of {len(inputs)} trusted inputs, so they have no "
                "donor other than themselves - claim a coarser value, or give more trusted inputs"
            )
    return counts, problems
