"""``causalmad evaluate``: a detector on a task, beside the surface controls."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from causalmad.cli.claims import Hypothesis, with_claim
from causalmad.cli.console import progress, show
from causalmad.cli.files import STANDARD, require_file, write_lines
from causalmad.cli.guard import Debug, Quiet, guarded


@guarded
def evaluate(
    task: Annotated[str, typer.Option(help="name\\[key=value,...]; see `causalmad list tasks`.")],
    detector: Annotated[str, typer.Option(help="signature+reference, each with its options.")],
    hypothesis: Hypothesis = None,
    seeds: Annotated[int, typer.Option(help="How many, from 0 on; each has its own model.", min=1)] = 5,
    as_json: Annotated[
        str | None, typer.Option("--json", help="Write the numbers here, - for standard output.", metavar="PATH")
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Evaluate a detector on a task: how many anomalies it finds, how often it cries wolf."""
    if as_json is not None:
        require_file(as_json)
    with progress(quiet) as step:
        from causalmad.evaluation.protocol import evaluate as run
        from causalmad.names import parse_detector

        parts = with_claim(parse_detector(detector), hypothesis)
        found = run(task, detector if hypothesis is None else parts, seeds, progress=step)
    if as_json is not None:
        write_lines(as_json, [json.dumps(found.to_data(), indent=1, allow_nan=False)])
    if as_json != STANDARD:
        show(*found.tables())
