"""``causalmad list``: what a name on the command line can mean."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from causalmad.catalogue import KINDS, catalogue
from causalmad.cli.complete import LISTED, kinds
from causalmad.cli.console import progress
from causalmad.cli.guard import Debug, Quiet, guarded
from causalmad.cli.parts import detectors
from causalmad.errors import SpecError, nearest


@guarded
def list_parts(
    kind: Annotated[
        str | None,
        typer.Argument(help=f"One of {', '.join(LISTED)}; all parts by default.", autocompletion=kinds),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help='Print [{"name", "summary"}, ...] instead.')] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List signatures, references, calibrators, targets, tasks, ready-made detectors or suites."""
    if kind not in (None, *LISTED):
        raise SpecError(f"no kind {kind!r} to list", needed=", ".join(LISTED), tries=nearest(str(kind), LISTED))
    found = {each: _entries(each, quiet) for each in (KINDS if kind is None else (kind,))}
    if as_json:
        typer.echo(json.dumps(found if kind is None else found[kind], indent=1, ensure_ascii=False))
        return
    widest = max(len(entry["name"]) for entries in found.values() for entry in entries)
    for each, entries in found.items():
        if kind is None:
            typer.echo(each)
        for entry in entries:
            typer.echo(f"  {entry['name']:<{widest}}  {entry['summary']}")


def _entries(kind: str, quiet: bool) -> list[dict[str, str]]:
    if kind == "detectors":
        with progress(quiet) as step:
            step("loading torch", 0, 0)
            return [{"name": name, "summary": text} for name, text in detectors().items()]
    if kind == "suites":
        with progress(quiet) as step:
            step("loading torch", 0, 0)
            from causalmad.evaluation.suites import SUITES

        return [
            {
                "name": name,
                "summary": f"{len(each.detectors)} detectors on {len(each.tasks)} tasks, {each.seeds} seeds: "
                f"{', '.join(each.tasks)}",
            }
            for name, each in SUITES.items()
        ]
    return [{"name": entry.name, "summary": entry.summary} for entry in catalogue(kind)]
