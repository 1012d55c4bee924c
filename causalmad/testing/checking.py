"""The laws of a part, tried on the toys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from causalmad.errors import CausalmadError, SpecError
from causalmad.models import open_model
from causalmad.references.estimators import fit_reference
from causalmad.testing import detector_laws
from causalmad.testing.calibrator_laws import CALIBRATOR_LAWS
from causalmad.testing.detector_laws import DETECTOR_LAWS
from causalmad.testing.lookup import Part
from causalmad.testing.outcomes import LawReport, Outcome, try_law
from causalmad.testing.reference_laws import REFERENCE_LAWS, given
from causalmad.testing.signature_laws import SIGNATURE_LAWS
from causalmad.testing.toys import Toy, toy

TOYS = ("mlp", "conv", "gpt2")

# Laws of what a fitted reference may do without.
_OPTIONAL = {"law_contributions_sum_to_the_score": "contributions", "law_state_restores": "state"}

Step: TypeAlias = Callable[[str, int, int], None]
"""Called with (what is being done, laws done, laws in all)."""


def check_part(part: Part, toys: Sequence[str] = TOYS, *, step: Step | None = None) -> LawReport:
    """Every law of a signature, reference, calibrator or detector.

    Args:
        part: what :func:`causalmad.testing.lookup.find_part` found.
        toys: for signatures and detectors, see :func:`causalmad.testing.toy`.
        step: called after every law.

    Raises:
        SpecError: on an unknown toy, no toys, or a part without laws.
    """
    ways = {"signatures": _signature, "references": _reference, "calibrators": _calibrator, "detectors": _detector}
    if part.kind not in ways:
        raise SpecError(f"no laws for {part.kind}", needed=f"one of {', '.join(ways)}")
    if not toys:
        raise SpecError("no toys", tries=[",".join(TOYS)])
    for name in toys:
        toy(name, 1, 1)
    counts = {"signatures": SIGNATURE_LAWS, "detectors": DETECTOR_LAWS}
    total = len(toys) * len(counts[part.kind]) if part.kind in counts else 0
    outcomes = []
    for outcome in ways[part.kind](part, tuple(dict.fromkeys(toys))):
        outcomes.append(outcome)
        if step is not None:
            step(f"laws of {part.text}", len(outcomes), total)
    return LawReport(part.text, part.kind, tuple(outcomes))


def _signature(part: Part, toys: Sequence[str]) -> Iterator[Outcome]:
    def fitted(made: Toy) -> object:
        return made.ready(part.spec).fit(open_model(made.model), made.trusted, seed=0)

    for name in toys:
        refusal = _refusal(lambda name=name: fitted(_small(name)))  # type: ignore[misc]
        for law in SIGNATURE_LAWS:
            made = _small(name)  # a law that is broken may leave something on it
            yield _tried(part, law, name, refusal, made.ready(part.spec), made, "hooks")


def _detector(part: Part, toys: Sequence[str]) -> Iterator[Outcome]:
    def ready(made: Toy) -> Any:
        return replace(part.spec, signature=made.ready(part.spec.signature))

    for name in toys:
        first = toy(name, 40, 6)
        refusal = _refusal(lambda first=first: detector_laws.fit(ready(first), first))  # type: ignore[misc]
        for law in DETECTOR_LAWS:
            many = law is detector_laws.law_a_null_scores_a_half
            made = toy(name, 60, 60) if many else toy(name, 40, 6)
            yield _tried(part, law, name, refusal, ready(made), made)


def _reference(part: Part, toys: Sequence[str]) -> Iterator[Outcome]:
    rows = np.random.default_rng(0).normal(size=(60, 5))
    try:
        fitted: Any = fit_reference(part.spec, rows, seed=0, **given(part.spec, rows))
    except Exception:  # the laws tell
        fitted = None
    for law in REFERENCE_LAWS:
        lacking = _OPTIONAL.get(law.__name__)
        if fitted is not None and lacking is not None and not hasattr(fitted, lacking):
            yield Outcome(law.__name__, "rows", "does not apply", f"what is fitted has no {lacking}")
        else:
            yield _tried(part, law, "rows", "", part.spec)


def _calibrator(part: Part, toys: Sequence[str]) -> Iterator[Outcome]:
    for law in CALIBRATOR_LAWS:
        yield _tried(part, law, "scores", "", part.spec)


def _tried(part: Part, law: Callable[..., None], on: str, refusal: str, *args: Any) -> Outcome:
    """A law's outcome; an excuse is for the part with its default options."""
    name, bracket, _ = part.text.partition("[")
    return try_law(law, name, on, *args, refusal=refusal, strict=not bracket)


def _refusal(fit: Callable[[], object]) -> str:
    """With which named error a fit is refused; nothing where it is not, or where it fails otherwise."""
    try:
        fit()
    except CausalmadError as error:
        return f"{type(error).__name__}: {error}"
    except Exception:  # the laws tell
        return ""
    return ""


def _small(name: str) -> Toy:
    return toy(name, trusted=16, fresh=7)
