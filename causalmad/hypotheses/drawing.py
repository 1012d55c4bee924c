"""What a drawing says below every node of a hypothesis: where it is, and of what it is a function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from causalmad.hypotheses.graph import OUTPUT

if TYPE_CHECKING:
    from causalmad.hypotheses.graph import Hypothesis


def notes(hypothesis: Hypothesis) -> dict[str, str]:
    """Node -> its sites, one a line, and its mechanism with the causes that it is given."""
    found = {
        claim.name: [*map(str, claim.at), *_formula(hypothesis, claim.name, claim.mechanism)]
        for claim in hypothesis.claims
    }
    found[OUTPUT] = _formula(hypothesis, OUTPUT, hypothesis.output_mechanism)
    return {name: "\n".join(lines) for name, lines in found.items()}


def _formula(hypothesis: Hypothesis, name: str, mechanism: object) -> list[str]:
    if mechanism is None:
        return []
    called = getattr(mechanism, "__name__", type(mechanism).__name__)
    return [f"= {'f' if called == '<lambda>' else called}({', '.join(hypothesis.parents(name))})"]
