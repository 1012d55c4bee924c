"""``causalmad doctor``: what is installed, and whether a model of yours keeps the laws of models."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causalmad.cli.console import Step, progress, remark, show
from causalmad.cli.files import STANDARD, Json, require_file, write_json
from causalmad.cli.guard import FAILED, Debug, Quiet, guarded
from causalmad.cli.models import Device, Dtype, Model, Precision, Task, Tokenizer, choose
from causalmad.errors import SpecError

if TYPE_CHECKING:
    from causalmad.cli.installation import Finding
    from causalmad.rows import Row
    from causalmad.testing.own_model import ModelReport


@guarded
def doctor(
    model: Model = None,
    task: Task = None,
    inputs: Annotated[
        str | None,
        typer.Option(
            help="JSON lines that the model is run on, - for standard input; by default made up, or the task's.",
            metavar="FILE",
        ),
    ] = None,
    tokenizer: Tokenizer = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    as_json: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Look over the installation and, with --model, whether padding, edits and signatures leave a model as it was."""
    if as_json is not None:
        require_file(as_json)
    if inputs is not None and model is None and task is None:
        raise SpecError("--inputs without a model", tries=["--model FOLDER", "--task gate-digits"])
    from causalmad.rows import read_rows

    rows = None if inputs is None else read_rows(inputs)
    with progress(quiet) as step:
        from causalmad.cli.installation import installation

        step("looking over the installation", 0, 0)
        found = installation()
        step("looking over the installation", 1, 1)
        own = None
        if model is not None or task is not None:
            own = _examined(model, task, rows, tokenizer, device, dtype, step, quiet)
    good = all(finding.status != "bad" for finding in found) and (own is None or own.holds)
    if as_json is not None:
        data = None if own is None else own.to_data()
        write_json(as_json, {"holds": good, "installation": [asdict(finding) for finding in found], "model": data})
    if as_json != STANDARD:
        show(_table(found))
        if own is not None:
            show(own.table(), own.laws.table(), *own.laws.lines())
    if not good:
        raise typer.Exit(FAILED)


def _examined(
    model: str | None,
    task: str | None,
    rows: list[Row] | None,
    tokenizer: str | None,
    device: str,
    dtype: Precision | None,
    step: Step,
    quiet: bool,
) -> ModelReport:
    from causalmad.models import open_model
    from causalmad.rows import as_inputs
    from causalmad.testing.own_model import examine, made_up

    chosen = choose(model, task, 0, device, step, dtype, tokenizer)
    opened = open_model(chosen.module, tokenizer=chosen.tokenizer)
    if rows is not None:
        given = as_inputs(rows, opened, chosen.blocks)
    elif chosen.test is not None:
        given = chosen.test
    else:
        given = made_up(opened)
    report = examine(chosen.module, given, str(model or task), step=step)
    if report.inputs < len(given):
        remark(f"The laws were tried on the first {report.inputs} of {len(given)} inputs.", quiet)
    return report


def _table(found: tuple[Finding, ...]) -> Any:
    """A rich table of the installation."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Installation", title_justify="left")
    for heading in ("", "found", "", ""):
        table.add_column(heading)
    for finding in found:
        status = "BAD" if finding.status == "bad" else finding.status
        table.add_row(Text(finding.name), Text(finding.value), status, Text(finding.note))
    return table
