"""``causalmad bench`` and ``causalmad compare``: every detector on every task, and two detectors input by input."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from causalmad.cli.complete import suites, tasks, whole_detectors
from causalmad.cli.console import progress, remark, show
from causalmad.cli.files import STANDARD, Json, require_file, require_results, write_json
from causalmad.cli.guard import Debug, Quiet, guarded
from causalmad.cli.parts import detector_text


@guarded
def bench(
    out: Annotated[Path, typer.Option(help="Folder for logs and leaderboard; what it holds already is not run again.")],
    suite: Annotated[
        str,
        typer.Option(
            help="quick (minutes), core (hours) or full (a night); see `causalmad list suites`.",
            autocompletion=suites,
        ),
    ] = "quick",
    task: Annotated[
        list[str] | None,
        typer.Option(help="These tasks in place of the suite's; as often as you like.", autocompletion=tasks),
    ] = None,
    detector: Annotated[
        list[str] | None,
        typer.Option(
            help="These detectors in place of the suite's, by name or as signature+reference; as often as you like.",
            autocompletion=whole_detectors,
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="How many seeds.", show_default="the suite's", min=1, metavar="N")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="How many at once.", show_default="one per core", min=1, metavar="N")
    ] = None,
    as_json: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run every detector of a suite on every task; goes on where a killed run stopped."""
    if as_json is not None:
        require_file(as_json)
    with progress(quiet) as step:
        step("loading torch", 0, 0)
        from causalmad.config import parse_spec
        from causalmad.evaluation.bench import bench as run
        from causalmad.evaluation.suites import headline
        from causalmad.evaluation.suites import suite as find
        from causalmad.names import parse_detector

        step("loading torch", 1, 1)
        chosen = {text: detector_text(text) for text in detector or ()}
        wanted = find(suite).narrowed(task or (), chosen, seeds)
        for name in wanted.tasks:  # a wrong name before any work
            parse_spec("tasks", name)
        for text in wanted.detectors.values():
            parse_detector(text)
        require_results(out)
        board = run(wanted, out, processes=processes, progress=step)
    if as_json is not None:
        write_json(as_json, board.to_data())
    if as_json != STANDARD:
        table = board.table()
        table.title = f"{headline(wanted.name)}: AUROC over {wanted.seeds} seed{'s' * (wanted.seeds != 1)}"
        show(table)
    remark(f"{out / 'leaderboard.md'}, leaderboard.csv and leaderboard.json are written", quiet)


@guarded
def compare(
    folder: Annotated[Path, typer.Argument(help="Folder that `causalmad bench` wrote.")],
    first: Annotated[str, typer.Argument(help="A detector, as it is called there.")],
    second: Annotated[str, typer.Argument(help="Another.")] = "activations",
    as_json: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare two detectors on the same inputs: differences of AUROC with paired intervals."""
    if as_json is not None:
        require_file(as_json)
    with progress(quiet) as step:
        step("loading torch", 0, 0)
        from causalmad.evaluation.comparing import compare as run
        from causalmad.evaluation.logs import read_logs

        step("loading torch", 1, 1)
        step("reading logs and drawing intervals", 0, 0)
        found = run(read_logs([folder]), first, second)
    if as_json is not None:
        write_json(as_json, found.to_data())
    if as_json != STANDARD:
        show(found.table())
