"""``causalmad evaluate``: a detector on a task, beside the surface controls."""

from __future__ import annotations

from typing import Annotated

import typer

from causalmad.cli.claims import Hypothesis, with_claim
from causalmad.cli.complete import tasks, whole_detectors
from causalmad.cli.console import progress, show
from causalmad.cli.files import STANDARD, Json, Keep, require_file, write_json
from causalmad.cli.guard import Debug, Quiet, guarded
from causalmad.cli.parts import detector_text


@guarded
def evaluate(
    task: Annotated[str, typer.Option(help="name\\[key=value,...]; see `causalmad list tasks`.", autocompletion=tasks)],
    detector: Annotated[
        str,
        typer.Option(
            help="signature+reference, each with its options, or a name of `causalmad list detectors`.",
            autocompletion=whole_detectors,
        ),
    ],
    hypothesis: Hypothesis = None,
    seeds: Annotated[
        int, typer.Option(help="How many, from 0 on; each has its own model and inputs (from-files: its fit).", min=1)
    ] = 5,
    cache: Keep = None,
    as_json: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Evaluate a detector on a task: how many anomalies it finds, how often it cries wolf."""
    if as_json is not None:
        require_file(as_json)
    with progress(quiet) as step:
        step("loading torch", 0, 0)
        text = detector_text(detector)
        from causalmad.evaluation.protocol import evaluate as run
        from causalmad.names import parse_detector

        step("loading torch", 1, 1)
        parts = with_claim(parse_detector(text), hypothesis)
        found = run(task, text if hypothesis is None else parts, seeds, progress=step, cache=cache)
    if as_json is not None:
        write_json(as_json, found.to_data())
    if as_json != STANDARD:
        show(*found.tables())
