"""The commands, joined. Nothing heavy is imported before a command runs: ``--help`` and ``list`` never need torch."""

from __future__ import annotations

from typing import Annotated

import typer

from causalmad import __version__
from causalmad.cli.bench import bench, compare
from causalmad.cli.check import check
from causalmad.cli.demo import demo
from causalmad.cli.detect import detect
from causalmad.cli.doctor import doctor
from causalmad.cli.evaluate import evaluate
from causalmad.cli.explain import explain
from causalmad.cli.fit import fit
from causalmad.cli.listing import list_parts

app = typer.Typer(
    name="causalmad",
    help="Was this output produced for the usual reason? Mechanistic anomaly detection for PyTorch models.",
    epilog="Exit codes: 0 done, 1 something was flagged (with --fail-on-flag only), 2 the command could not be done, "
    "130 interrupted.",
    no_args_is_help=True,
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


# Shown at the end of --help. A bracket that is to be seen is escaped: help is markup.
EXAMPLES = {
    "demo": "causalmad demo --report demo.html",
    "list": "causalmad list references",
    "fit": "causalmad fit --model ./model --trusted trusted.jsonl --detector activations-lof --out det/",
    "detect": "causalmad detect det/ incoming.jsonl --model ./model --alpha 0.01 --out flags.jsonl",
    "explain": "causalmad explain flags.jsonl --id 17",
    "evaluate": "causalmad evaluate --task gate-digits --detector attribution-patching+mahalanobis --seeds 5",
    "bench": "causalmad bench --suite quick --out results/",
    "compare": "causalmad compare results/ resampling-profile activations",
    "check": "causalmad check my_package.my_module:MySignature",
    "doctor": "causalmad doctor --model ./model --inputs prompts.jsonl",
}

for name, command in (
    ("demo", demo),
    ("list", list_parts),
    ("fit", fit),
    ("detect", detect),
    ("explain", explain),
    ("evaluate", evaluate),
    ("bench", bench),
    ("compare", compare),
    ("check", check),
    ("doctor", doctor),
):
    app.command(name, epilog=f"Example: {EXAMPLES[name]}" if name in EXAMPLES else None)(command)


def main() -> None:
    """The console script."""
    app()
