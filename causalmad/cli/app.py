"""The commands, joined. Nothing heavy is imported before a command runs: ``--help`` and ``list`` never need torch."""

from __future__ import annotations

from typing import Annotated

import typer

from causalmad import __version__
from causalmad.cli.bench import bench, compare
from causalmad.cli.demo import demo
from causalmad.cli.detect import detect
from causalmad.cli.evaluate import evaluate
from causalmad.cli.explain import explain
from causalmad.cli.fit import fit
from causalmad.cli.listing import list_parts

app = typer.Typer(
    name="causalmad",
    help="Was this output produced for the usual reason? Mechanistic anomaly detection for PyTorch models.",
    epilog="Exit codes: 0 done, 1 something was flagged (with --fail-on-flag only), 2 the command could not be done.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"causalmad {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Was this output produced for the usual reason? Mechanistic anomaly detection for PyTorch models."""


for name, command in (
    ("demo", demo),
    ("list", list_parts),
    ("fit", fit),
    ("detect", detect),
    ("explain", explain),
    ("evaluate", evaluate),
    ("bench", bench),
    ("compare", compare),
):
    app.command(name)(command)


def main() -> None:
    """The console script."""
    app()
