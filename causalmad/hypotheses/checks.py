"""Checking a hypothesis on a model and trusted inputs: every defect at once, and what it preserves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from causalmad.errors import CausalmadError, HypothesisError
from causalmad.hypotheses.bench import Bench
from causalmad.hypotheses.graph import OUTPUT, Hypothesis, comparable, problems_error
from causalmad.hypotheses.interchange import apply, predict
from causalmad.hypotheses.scrubbing import Scrubbed, scrub, sites_of
from causalmad.inputs import Inputs
from causalmad.models import OpenModel, open_model
from causalmad.sites import Site


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

    def _repr_html_(self) -> str:
        """The report as a table for notebooks."""
        from causalmad.plots.tables import facts

        title, *lines = str(self).splitlines()
        return facts(title, (line.strip().partition(": ")[::2] for line in lines))


def check(hypothesis: Hypothesis, model: Any, trusted: Any, *, draws: int = 4, seed: int = 0) -> Report:
    """Every defect of a claim at once, and the share of trusted behaviour that it preserves.

    Reported are unknown sites (nearest three names), sites that cannot be read or replaced on these inputs, that two
    claims share, or that contradict the direction of an edge; values that fail, that are no values, that never vary, or
    that have no donors; and mechanisms that are missing, fail, or contradict the values. (Cycles and unreachable nodes
    are refused when the hypothesis is made.)

    Args:
        hypothesis: the claim.
        model: whatever :func:`causalmad.open_model` takes.
        trusted: trusted inputs.
        draws: scrubs per input for the share of behaviour preserved.
        seed: decides the draws.
    """
    opened = open_model(model)
    inputs = opened.inputs(trusted)
    values, found = _value_problems(hypothesis, inputs)
    problems = [*_site_problems(hypothesis, opened, inputs), *found, *_mechanism_problems(hypothesis, values)]
    counts = {name: Counter(some) for name, some in values.items() if some}
    donors = {name: (len(sizes), min(sizes.values()) - 1) for name, sizes in counts.items()}
    preserved = None
    if not problems and all(claim.value is not None for claim in hypothesis.claims):
        preserved = scrub(opened, hypothesis, inputs, draws=draws, seed=seed)
    return Report(hypothesis.name, tuple(problems), donors, preserved)


def _site_problems(hypothesis: Hypothesis, model: OpenModel, inputs: Inputs) -> list[str]:
    sites: dict[str, tuple[Site, ...]] = {}
    problems = []
    for claim in hypothesis.claims:
        for text in claim.at:
            try:
                sites[claim.name] = (*sites.get(claim.name, ()), *model.sites(text))
            except CausalmadError as error:
                problems.append(f"node {claim.name!r}: {_line(error)}")
    if not problems:
        try:
            problems = _exchange_problems(Bench.of(model, inputs), sites)
        except CausalmadError as error:
            problems = [_line(error)]
    for (one, some), (other, more) in combinations(sites.items(), 2):
        shared = [site for site in some for twin in more if _overlap(site, twin)]
        problems += [f"nodes {one!r} and {other!r} both claim {site}" for site in shared[:1]]
    return problems or _order_problems(hypothesis, model, inputs)


def _exchange_problems(bench: Bench, sites: Mapping[str, tuple[Site, ...]]) -> list[str]:
    """Sites that cannot be read on every input, or not be replaced."""

    def exchange(some: list[Site]) -> None:
        _, held = bench.run(np.arange(len(bench.pool)), read=some, output=False)
        first = np.arange(1)
        bench.run(first, {site: values.take(first) for site, values in held.items()})

    try:
        exchange([site for found in sites.values() for site in found])
        return []
    except CausalmadError:
        pass  # which of them it was is found out one by one
    problems = []
    for name, site in ((name, site) for name, found in sites.items() for site in found):
        try:
            exchange([site])
        except CausalmadError as error:
            problems.append(f"node {name!r}: {_line(error)}")
    return problems


def _overlap(one: Site, other: Site) -> bool:
    """Whether two sites have entries in common; subspaces and named positions are taken to differ as their names do."""
    if one.place != other.place:
        return False
    if one.subspace is not None and other.subspace is not None and one.subspace != other.subspace:
        return False
    if one.position != other.position and None not in (one.position, other.position):
        return False
    pairs = ((one.heads, other.heads), (one.neurons, other.neurons))
    return not any(a and b and not set(a) & set(b) for a, b in pairs)


def _order_problems(hypothesis: Hypothesis, model: OpenModel, inputs: Inputs) -> list[str]:
    order = _order(hypothesis, model, inputs)
    return [
        f"edge {cause!r} -> {effect!r}: a site of {cause!r} does not run before all of {effect!r}"
        for cause, effect in hypothesis.to_networkx().edges
        if effect != OUTPUT and max(order[cause]) >= min(order[effect])
    ]


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


def _value_problems(hypothesis: Hypothesis, inputs: Inputs) -> tuple[dict[str, list[Hashable]], list[str]]:
    """Claim -> its values on the inputs, where it has some; and what is wrong with them."""
    values: dict[str, list[Hashable]] = {}
    problems = []
    for claim in hypothesis.claims:
        if claim.value is None:
            continue
        try:
            found = [claim.of(inputs.row(i)) for i in range(len(inputs))]
        except HypothesisError as error:
            problems.append(_line(error))
            continue
        values[claim.name] = found
        counts = Counter(found)
        alone = sum(1 for count in counts.values() if count == 1)
        if len(counts) == 1 and len(inputs) > 1:
            problems.append(f"node {claim.name!r}: value() is the same for all {len(inputs)} trusted inputs")
        elif alone:
            problems.append(
                f"node {claim.name!r}: value() is unique for {alone} of {len(inputs)} trusted inputs, so they have no "
                "donor other than themselves - claim a coarser value, or give more trusted inputs"
            )
    return values, problems


def _mechanism_problems(hypothesis: Hypothesis, values: Mapping[str, Sequence[Hashable]]) -> list[str]:
    """Mechanisms that are missing where others are given, that fail, or whose answer is not the value."""
    inner = [claim for claim in hypothesis.claims if hypothesis.parents(claim.name)]
    given = [claim for claim in inner if claim.mechanism is not None]
    if not given and hypothesis.output_mechanism is None:
        return []
    missing = [claim.name for claim in inner if claim.mechanism is None]
    missing += [OUTPUT] if hypothesis.output_mechanism is None else []
    problems = [f"node {name!r}: no mechanism=, so that the others' predict no answer" for name in missing]
    if missing or {claim.name for claim in hypothesis.claims} - set(values):
        return problems
    rows = range(len(next(iter(values.values()))))
    for claim in given:
        causes = hypothesis.parents(claim.name)
        try:
            known = ({cause: values[cause][row] for cause in causes} for row in rows)
            found = [apply(claim.mechanism, claim.name, some) for some in known]
            same = [comparable(found[row], claim.tolerance, claim.name) == values[claim.name][row] for row in rows]
        except HypothesisError as error:
            problems.append(_line(error))
            continue
        if not all(same):
            differ = f"on {len(same) - sum(same)} of {len(same)} trusted inputs"
            problems.append(f"node {claim.name!r}: mechanism() is not value() {differ}")
    try:
        for row in rows:
            predict(hypothesis, {name: found[row] for name, found in values.items()}, {})
    except HypothesisError as error:
        problems.append(_line(error))
    return list(dict.fromkeys(problems))


def _line(error: CausalmadError) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines())
