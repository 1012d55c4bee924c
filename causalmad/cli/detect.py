"""``causalmad detect``: scores, p-values, flags and reasons, one JSON line per input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causalmad.cli.claims import load_claim
from causalmad.cli.console import progress, remark, show
from causalmad.cli.files import STANDARD, require_file, write_lines
from causalmad.cli.fit import Device, Model, Task
from causalmad.cli.guard import FLAGGED, Debug, Quiet, guarded
from causalmad.cli.models import choose
from causalmad.errors import InputsError
from causalmad.rows import as_inputs, read_rows

if TYPE_CHECKING:
    from causalmad.detection import Detection


class Multiplicity(str, Enum):
    """What ``--fdr`` can be."""

    bh = "bh"
    by = "by"
    storey = "storey"
    e_bh = "e-bh"


@guarded
def detect(
    detector: Annotated[str, typer.Argument(help="Folder that `causalmad fit` wrote.", metavar="DIR")],
    inputs: Annotated[
        str | None,
        typer.Argument(help="JSON lines, - for standard input; by default the task's test inputs.", metavar="[INPUTS]"),
    ] = None,
    model: Model = None,
    task: Task = None,
    hypothesis: Annotated[
        str | None,
        typer.Option(help="The hypothesis it was fitted with, where that is code of yours.", metavar="MODULE:NAME"),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Share of normal inputs that may be flagged.")] = 0.05,
    fdr: Annotated[
        Multiplicity | None,
        typer.Option(help="Bound the share of false flags among all flags by alpha instead, such as bh."),
    ] = None,
    out: Annotated[
        str, typer.Option(help="Where the JSON lines go, - for standard output.", metavar="FILE")
    ] = STANDARD,
    fail_on_flag: Annotated[
        bool, typer.Option("--fail-on-flag", help="Exit code 1 when any input is flagged.")
    ] = False,
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(help="Of the task.", min=0)] = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score inputs with a saved detector, on the model that it was fitted on."""
    require_file(out)
    rows = None if inputs is None else read_rows(inputs)
    if rows is None and task is None:
        raise InputsError("no inputs", tries=["causalmad detect DIR INPUTS.jsonl", "causalmad detect DIR -"])
    with progress(quiet) as step:
        from causalmad.detector import FittedDetector
        from causalmad.evaluation.threads import fitting_threads
        from causalmad.models import open_model

        chosen = choose(model, task, seed, device, step)
        claim = None if hypothesis is None else load_claim(hypothesis)
        fitted = FittedDetector.load(detector, chosen.module, hypothesis=claim)
        fitted.calibrator.require(alpha)
        opened = open_model(fitted.model, tokenizer=chosen.tokenizer)
        given = opened.inputs(chosen.test) if rows is None else as_inputs(rows, opened, chosen.blocks)
        step("scoring", 0, 0)
        with fitting_threads(chosen.module):
            detection = fitted.detect(given, alpha=alpha, fdr=None if fdr is None else fdr.value)
        write_lines(out, (json.dumps(row) for row in _rows(detection, step)))
    flags = detection.flags
    repeated = detection.provenance["also trusted"]
    if repeated:
        remark(
            f"{len(repeated)} of {len(given)} inputs are among the trusted ones, so their p-values mean nothing: "
            f"{', '.join(map(repr, repeated[:3]))}{' ...' if len(repeated) > 3 else ''}",
            quiet,
        )
    pool = detection.provenance["also untrusted"]
    if pool:
        remark(f"{len(pool)} of {len(given)} inputs are of the untrusted pool that the reference was fitted on.", quiet)
    if detection.note and not flags.any():
        remark(detection.note, quiet)
    summary = f"{int(flags.sum())} of {len(given)} inputs flagged at {detection.level}"
    if out == STANDARD:
        remark(summary, quiet)
    else:
        show(f"{summary}. Written to {out}")
    if fail_on_flag and flags.any():
        raise typer.Exit(FLAGGED)


def _rows(detection: Detection, step: Any) -> Iterator[dict[str, Any]]:
    """What stands in the file for each input: enough to explain it without the detector."""
    for row in range(len(detection)):
        yield detection.row(row)
        step("writing", row + 1, len(detection))
