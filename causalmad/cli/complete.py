"""What the shell offers when Tab is pressed; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from causalmad.catalogue import KINDS, catalogue
from causalmad.cli.parts import detectors
from causalmad.errors import CausalmadError

LISTED = (*KINDS, "detectors", "suites")
_ORDER = ("signatures", "references", "calibrators")


def signatures(incomplete: str) -> list[tuple[str, str]]:
    """Signatures that start so."""
    return _named("signatures", incomplete)


def references(incomplete: str) -> list[tuple[str, str]]:
    """References that start so."""
    return _named("references", incomplete)


def calibrators(incomplete: str) -> list[tuple[str, str]]:
    """Calibrators that start so."""
    return _named("calibrators", incomplete)


def tasks(incomplete: str) -> list[tuple[str, str]]:
    """Tasks that start so."""
    return _named("tasks", incomplete)


def whole_detectors(incomplete: str) -> list[tuple[str, str]]:
    """Ready-made detectors that start so, and parts for the place behind the last plus sign."""
    before, plus, last = incomplete.rpartition("+")
    place = min(before.count("+") + 1 if plus else 0, len(_ORDER) - 1)
    parts = [(f"{before}{plus}{name}", summary) for name, summary in _named(_ORDER[place], last)]
    ready = [] if plus else [pair for pair in detectors().items() if pair[0].startswith(last)]
    return list({**dict(parts), **dict(ready)}.items())


def kinds(incomplete: str) -> list[str]:
    """What `causalmad list` takes."""
    return _starting(LISTED, incomplete)


def suites(incomplete: str) -> list[str]:
    """Suites that start so."""
    from causalmad.evaluation.suites import SUITES

    return _starting(SUITES, incomplete)


def folders(incomplete: str) -> list[str]:
    """Folders that start so."""
    typed = Path(incomplete)
    parent = typed if incomplete.endswith("/") else typed.parent
    try:
        found = sorted(entry.name for entry in parent.expanduser().iterdir() if entry.is_dir())
    except OSError:
        return []
    start = "" if incomplete.endswith("/") else typed.name
    lead = incomplete[: len(incomplete) - len(start)]
    return [f"{lead}{name}/" for name in found if name.startswith(start) and (start or not name.startswith("."))]


def _named(kind: str, incomplete: str) -> list[tuple[str, str]]:
    try:
        return [(entry.name, entry.summary) for entry in catalogue(kind) if entry.name.startswith(incomplete)]
    except (CausalmadError, OSError):  # a shell shows no errors while Tab is pressed
        return []


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
