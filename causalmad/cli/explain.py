"""``causalmad explain``: why one input got its score, from the file of ``causalmad detect`` alone."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from causalmad.cli.console import Step, progress, show
from causalmad.cli.guard import Debug, Quiet, guarded
from causalmad.errors import InputsError, nearest
from causalmad.rows import Row, each_row

_NEEDED = ("id", "flag", "score", "p", "contributions", "nearest")


@guarded
def explain(
    flags: Annotated[
        str, typer.Argument(help="File that `causalmad detect` wrote, - for standard input.", metavar="FILE")
    ],
    key: Annotated[str, typer.Option("--id", help="Which input: its id, or its row from 0 on.", metavar="ID")],
    top: Annotated[int, typer.Option(help="How many columns are shown one by one.", min=1)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print the row as JSON instead, with all columns.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show the columns whose contributions sum to an input's score, and the nearest trusted inputs."""
    with progress(quiet) as step:
        row = _find(flags, key, step)
    key = str(row.values.get("id"))
    missing = [name for name in _NEEDED if name not in row.values]
    if missing:
        raise InputsError(
            f"{row.place} has no {', '.join(map(repr, missing))}",
            needed="a file that `causalmad detect` wrote",
            causes=["--reasons flagged or none"] if "score" in row.values else [],
        )
    if as_json:
        typer.echo(json.dumps(row.values, indent=1))
        return
    with progress(quiet) as step:
        step("loading torch", 0, 0)
        from causalmad.explanation import table

    try:
        found = table(key, row.values, top)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputsError(
            f"{row.place} is damaged: {error!r}", needed="a file that `causalmad detect` wrote"
        ) from error
    show(found, "flagged" if row.values["flag"] else "not flagged")


def _find(flags: str, key: str, step: Step) -> Row:
    """The line of an id, or of a row number: inputs without ids of their own have hashes for ids, which nobody types.

    Raises:
        InputsError: when there is none.
    """
    ids: list[str] = []
    numbered: Row | None = None
    for number, row in enumerate(each_row(flags)):
        step("reading", number, 0)
        ids.append(str(row.values.get("id")))
        if ids[-1] == key:
            return row
        if key.isdecimal() and int(key) == number:
            numbered = row
    if numbered is not None:
        return numbered
    raise InputsError(
        f"no input {key!r} in {flags}",
        needed=f"an id, or a row number 0..{len(ids) - 1}",
        tries=[f"--id {name}" for name in nearest(key, ids)],
    )
