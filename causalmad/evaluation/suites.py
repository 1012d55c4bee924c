"""Suites: which detectors are run on which tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from causalmad.detectors import DETECTORS
from causalmad.errors import SpecError, nearest


@dataclass(frozen=True)
class Suite:
    """What a benchmark runs.

    Attributes:
        name: as it is called on the command line.
        tasks: as they are written there.
        detectors: name -> text as ``parse_detector`` reads it.
        seeds: how many models, data sets and fits of each.
    """

    name: str
    tasks: tuple[str, ...]
    detectors: Mapping[str, str]
    seeds: int


_QUICK = ("gate-digits", "gate-digits-obfuscated", "induction-lookup[shift=true]")
_CORE = (
    "gate-digits",
    "gate-digits-obfuscated",
    "parity-gate",
    "password-locked",
    "password-locked[obfuscated=activations]",
    "ambiguous-features",
    "adversarial-digits",
    "backdoor-digits[trigger=corner]",
    "induction-lookup",
    "induction-lookup[shift=true]",
    "ioi",
    "modular-sum",
    "planted-routes",
)
_FEW = ("activations", "attribution-patching", "resampling-profile")

SUITES = {
    "quick": Suite("quick", _QUICK, {name: DETECTORS[name] for name in _FEW}, 2),
    "core": Suite("core", _CORE, DETECTORS, 5),
}


def suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        SpecError: when there is none, with the nearest names.
    """
    if name not in SUITES:
        raise SpecError(f"no suite is called {name!r}", tries=nearest(name, list(SUITES)))
    return SUITES[name]
