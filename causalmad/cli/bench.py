"""``causalmad bench`` and ``causalmad compare``: every detector on every task, and two detectors input by input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from causalmad.cli.console import progress, remark, show
from causalmad.cli.files import STANDARD, require_file, write_lines
from causalmad.cli.guard import Debug, Quiet, guarded

Json = Annotated[
    str | None, typer.Option("--json", help="Write the numbers here, - for standard output.", metavar="PATH")
]


@guarded
def bench(
    out: Annotated[Path, typer.Option(help="Folder for logs and leaderboard; what it holds already is not run again.")],
    suite: Annotated[str, typer.Option(help="quick (minutes) or core (hours).")] = "quick",
    processes: Annotated[int | None, typer.Option(help="How many at once; one per core by default.", min=1)] = None,
    as_json: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run every detector of a suite on every task; goes on where a killed run stopped.

    Example: causalmad bench --suite quick --out results/
    """
    with progress(quiet) as step:
        from causalmad.evaluation.bench import bench as run
        from causalmad.evaluation.suites import suite as find

        board = run(find(suite), out, processes=processes, progress=step)
    if as_json is not None:
        require_file(as_json)
        write_lines(as_json, [json.dumps(board.to_data(), indent=1)])
    if as_json != STANDARD:
        show(board.table())
    remark(f"{out / 'leaderboard.md'}, leaderboard.csv and leaderboard.json are written", quiet)


@guarded
def compare(
    folder: Annotated[Path, typer.Argument(help="Folder that `causalmad bench` wrote.")],
    first: Annotated[str, typer.Argument(help="A detector, as it is called there.")],
    second: Annotated[str, typer.Argument(help="Another.")] = "activations",
    as_json: Json = None,
    debug: Debug = False,
) -> None:
    """Compare two detectors on the same inputs: differences of AUROC with paired intervals.

    Example: causalmad compare results/ resampling-profile activations
    """
    from causalmad.evaluation.comparing import compare as run
    from causalmad.evaluation.logs import read_logs

    found = run(read_logs([folder]), first, second)
    if as_json is not None:
        require_file(as_json)
        write_lines(as_json, [json.dumps(found.to_data(), indent=1)])
    if as_json != STANDARD:
        show(found.table())
