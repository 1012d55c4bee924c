"""``causalmad check``: the laws on a part, the rules on a task."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causalmad.cli.console import Step, progress, show
from causalmad.cli.files import STANDARD, Json, require_file, require_one_standard, write_json, write_lines
from causalmad.cli.guard import FAILED, Debug, Quiet, guarded
from causalmad.errors import SpecError

if TYPE_CHECKING:
    from causalmad.evaluation.acceptance import Acceptance
    from causalmad.testing.lookup import Part
    from causalmad.testing.outcomes import LawReport


@guarded
def check(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            help="A name of the catalogue with its options, signature+reference, or module:name of your own part or "
            "task, whose module is run.",
            metavar="TARGET...",
        ),
    ] = None,
    suite: Annotated[str | None, typer.Option(help="All tasks of a suite: quick, core or full.")] = None,
    seeds: Annotated[int, typer.Option(help="Of tasks: how many, from 0 on; each has its own model.", min=1)] = 1,
    toys: Annotated[
        str | None,
        typer.Option(
            help="Of signatures and detectors: mlp, linear, conv, gpt2, llama, neox, bert.", metavar="A,B,..."
        ),
    ] = None,
    markdown: Annotated[str | None, typer.Option(help="Write the tasks' cards here as a page.", metavar="FILE")] = None,
    as_json: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check that a part keeps the laws of its kind, or that a task is fit to be measured on; exit code 2 where not."""
    require_one_standard(**{"--markdown": markdown, "--json": as_json})
    for path in (markdown, as_json):
        if path is not None:
            require_file(path)
    if not targets and suite is None:
        raise SpecError(
            "nothing to check", tries=["causalmad check my_module:MySignature", "causalmad check --suite core"]
        )
    with progress(quiet) as step, _here():
        step("loading torch", 0, 0)
        parts = _parts(targets or [], suite)
        step("loading torch", 1, 1)
        if toys is not None and not any(part.kind in ("signatures", "detectors") for part in parts):
            raise SpecError("--toys without a signature or a detector", tries=["leave it out"])
        if markdown is not None and not any(part.kind == "tasks" for part in parts):
            raise SpecError("--markdown without a task", tries=["--suite core", "--json PATH"])
        found = [_checked(part, seeds, toys, step) for part in parts]
    if as_json is not None:
        write_json(as_json, {"targets": [each.to_data() for each in found]})
    if markdown is not None:
        _write_cards(markdown, found, _command(targets or [], suite, seeds, markdown))
    if STANDARD not in (as_json, markdown):
        show(*(line for each in found for line in _shown(each)))
    if not all(each.holds for each in found):
        raise typer.Exit(FAILED)


@contextmanager
def _here() -> Iterator[None]:
    """The current folder as a place to import from."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _parts(targets: list[str], suite: str | None) -> list[Part]:
    from causalmad.evaluation.suites import suite as find_suite
    from causalmad.testing.lookup import find_part

    of_suite = () if suite is None else find_suite(suite).tasks
    return [find_part(text) for text in dict.fromkeys((*targets, *of_suite))]


def _checked(part: Part, seeds: int, toys: str | None, step: Step) -> LawReport | Acceptance:
    from causalmad.evaluation.acceptance import accept
    from causalmad.testing.checking import TOYS, check_part

    if part.kind == "tasks":
        own = ":" in part.text.partition("[")[0]

        def say(what: str, done: int, total: int) -> None:
            step(f"{part.text}, {what}", done, total)

        return accept(part.spec if own else part.text, seeds, progress=say)
    chosen = TOYS if toys is None else [name.strip() for name in toys.split(",") if name.strip()]
    return check_part(part, chosen, step=step)


def _shown(found: LawReport | Acceptance) -> list[Any]:
    """The table, and what is to be said below it."""
    lines = getattr(found, "lines", None)
    return [found.table(), *(lines() if lines is not None else ())]


def _write_cards(path: str, found: list[Any], command: str) -> None:
    from causalmad.evaluation.acceptance import Acceptance
    from causalmad.evaluation.cards import cards_markdown

    cards = [each for each in found if isinstance(each, Acceptance)]
    write_lines(path, cards_markdown(cards, command).splitlines())


def _command(targets: list[str], suite: str | None, seeds: int, markdown: str) -> str:
    """What was typed, as far as the cards depend on it."""
    import shlex

    options = [] if suite is None else ["--suite", suite]
    place = "-" if markdown == STANDARD else os.path.basename(markdown) if os.path.isabs(markdown) else markdown
    return shlex.join(["causalmad", "check", *targets, *options, "--seeds", str(seeds), "--markdown", place])
