"""``causalmad list``: what a name on the command line can mean."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from causalmad.catalogue import KINDS, catalogue
from causalmad.cli.guard import Debug, guarded


@guarded
def list_parts(
    kind: Annotated[str | None, typer.Argument(help=f"One of {', '.join(KINDS)}; all of them by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help='Print [{"name", "summary"}, ...] instead.')] = False,
    debug: Debug = False,
) -> None:
    """List signatures, references, calibrators, targets and tasks."""
    kinds = KINDS if kind is None else (kind,)
    found = {each: [{"name": e.name, "summary": e.summary} for e in catalogue(each)] for each in kinds}
    if as_json:
        typer.echo(json.dumps(found if kind is None else found[kind], indent=1, ensure_ascii=False))
        return
    widest = max(len(entry["name"]) for entries in found.values() for entry in entries)
    for each, entries in found.items():
        if kind is None:
            typer.echo(each)
        for entry in entries:
            typer.echo(f"  {entry['name']:<{widest}}  {entry['summary']}")
