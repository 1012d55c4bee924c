"""``causalmad detect``: scores, p-values, flags and reasons, one JSON line per input."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causalmad.cli import reports
from causalmad.cli.claims import load_claim
from causalmad.cli.complete import folders
from causalmad.cli.console import progress, remark, show
from causalmad.cli.files import (
    STANDARD,
    Json,
    Keep,
    count_lines,
    require_apart,
    require_file,
    require_one_standard,
    write_json,
    write_lines,
)
from causalmad.cli.guard import FLAGGED, Debug, Quiet, guarded
from causalmad.cli.models import Chosen, Device, Dtype, Model, Task, Tokenizer, choose
from causalmad.cli.stream import IN_A_REPORT, Tally, Work, lines_of, lines_together, require_reportable, slices
from causalmad.errors import InputsError
from causalmad.rows import Row, chunked, each_row

if TYPE_CHECKING:
    from causalmad.detector import FittedDetector


class Reasons(str, Enum):
    """What ``--reasons`` can be."""

    all = "all"
    flagged = "flagged"
    none = "none"


class Multiplicity(str, Enum):
    """What ``--fdr`` can be."""

    bh = "bh"
    by = "by"
    storey = "storey"
    e_bh = "e-bh"


@guarded
def detect(
    detector: Annotated[
        str, typer.Argument(help="Folder that `causalmad fit` wrote.", metavar="DIR", autocompletion=folders)
    ],
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
        typer.Option(
            help="Bound the share of false flags among all flags by alpha instead, such as bh. All p-values are "
            "compared, so nothing is written before the last input is scored."
        ),
    ] = None,
    out: Annotated[
        str, typer.Option(help="Where the JSON lines go, - for standard output.", metavar="FILE")
    ] = STANDARD,
    reasons: Annotated[
        Reasons,
        typer.Option(help="Whose contributions and nearest trusted inputs are computed and written."),
    ] = Reasons.all,
    report: Annotated[
        str | None,
        typer.Option(help=f"Write a page of HTML as well; for at most {IN_A_REPORT:,} inputs.", metavar="FILE"),
    ] = None,
    as_json: Json = None,
    chunk: Annotated[
        int, typer.Option(help="Inputs that are read, scored and written at a time.", min=1, metavar="N")
    ] = 1024,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, from a timed sample; write nothing.")
    ] = False,
    fail_on_flag: Annotated[
        bool, typer.Option("--fail-on-flag", help="Exit code 1 when any input is flagged.")
    ] = False,
    cache: Keep = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    tokenizer: Tokenizer = None,
    seed: Annotated[int, typer.Option(help="Of the task.", min=0)] = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score inputs of any number with a saved detector, on the model that it was fitted on."""
    with progress(quiet) as step:
        step("counting the inputs", 0, 0)
        rows, total = _rows(inputs, task)
    if not dry_run:
        require_one_standard(**{"--out": out, "--json": as_json})
        require_apart(**{"the inputs": inputs, "--out": out, "--json": as_json, "--report": report})
        require_file(out)
        reports.require_report(report)
        if report is not None:
            require_reportable(total)
    started = time.perf_counter()
    with progress(quiet) as step:
        chosen = choose(model, task, seed, device, step, dtype, tokenizer)
        from causalmad.detector import FittedDetector
        from causalmad.evaluation.threads import fitting_threads
        from causalmad.extraction.cache import opened as opened_cache
        from causalmad.models import open_model

        step("reading the detector", 0, 0)
        claim = None if hypothesis is None else load_claim(hypothesis)
        fitted = FittedDetector.load(detector, chosen.module, hypothesis=claim)
        step("reading the detector", 1, 1)
        if not dry_run:
            fitted.calibrator.require(alpha)
        opened = open_model(fitted.model, tokenizer=chosen.tokenizer)
        if rows is None:
            whole = opened.inputs(chosen.test)
            total, chunks = len(whole), slices(whole, chunk)
        else:
            chunks = chunked(rows, opened, chosen.blocks, size=chunk)
        if dry_run:
            from causalmad.cli.plan import plan_detection

            plan = plan_detection(fitted, next(iter(chunks)), total, alpha, reasons.value, step)
        else:
            tally = Tally(kept=None if report is None else [])
            step("scoring", 0, total)
            watched = opened.batching.watched(partial(step, "running the model"))
            with fitting_threads(chosen.module), watched:
                work = Work(fitted, alpha, reasons.value, total, step, quiet, opened_cache(cache))
                if fdr is None:
                    lines = lines_of(work, chunks, tally)
                else:
                    folder = None if out == STANDARD else os.path.dirname(os.path.abspath(out))
                    lines = lines_together(work, chunks, tally, fdr.value, folder)
                write_lines(out, lines)
                if report is not None:
                    step("writing the report", 0, 0)
                    _report(report, fitted, chosen, tally, claim, None if fdr is None else fdr.value)
                    step("writing the report", 1, 1)
    if dry_run:
        plan.tell(as_json)
        return
    tally.remarks(quiet)
    _summary(tally, fitted, alpha, fdr, out, report, as_json, time.perf_counter() - started, quiet)
    if fail_on_flag and tally.flagged:
        raise typer.Exit(FLAGGED)


def _rows(inputs: str | None, task: str | None) -> tuple[Iterable[Row] | None, int]:
    """The rows of a stream, the first of them read already, and how many there are, 0 where that is not known."""
    if inputs is None:
        if task is None:
            raise InputsError("no inputs", tries=["causalmad detect DIR INPUTS.jsonl", "causalmad detect DIR -"])
        return None, 0
    return each_row(inputs), count_lines(inputs)


def _report(
    path: str, fitted: FittedDetector, chosen: Chosen, tally: Tally, claim: object | None, fdr: str | None
) -> None:
    inputs, detection = reports.joined(tally.kept or [], fdr, tally.adjusted, tally.note)
    labels = chosen.labels if chosen.test is not None and inputs.ids == chosen.test.ids else None
    tested = claim or getattr(fitted.spec.signature, "hypothesis", None)
    words = chosen.tokenizer
    reports.write(path, detection, inputs=inputs, labels=labels, hypothesis=tested, tokenizer=words, detector=fitted)


def _summary(
    tally: Tally,
    fitted: FittedDetector,
    alpha: float,
    fdr: Multiplicity | None,
    out: str,
    report: str | None,
    as_json: str | None,
    seconds: float,
    quiet: bool,
) -> None:
    if as_json is not None:
        data: dict[str, Any] = {
            "inputs": tally.count,
            "flagged": tally.flagged,
            "alpha": alpha,
            "fdr": None if fdr is None else fdr.value,
            "smallest_alpha": fitted.calibrator.smallest,
            "also_trusted": tally.trusted,
            "also_untrusted": tally.pool,
            "note": tally.note,
            "out": out,
            "report": report,
            "seconds": round(seconds, 3),
        }
        write_json(as_json, data)
    where = "" if out == STANDARD else f" Written to {out}."
    page = "" if report is None else f" Report: {report}."
    said = f"{tally.flagged} of {tally.count} inputs flagged at {tally.level}.{where}{page}"
    if STANDARD in (out, as_json):
        remark(said, quiet)
    else:
        show(said)
