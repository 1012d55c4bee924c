"""What people see: results on standard output, progress and remarks on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import typer

Step: TypeAlias = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all); 0 steps in all = their number is not known."""

WIDTH = 110


def show(*parts: Any) -> None:
    """Print texts and rich tables to standard output; square brackets are no markup."""
    from rich.console import Console

    # A file has no width of its own: tables get one, sentences stay whole.
    terminal = sys.stdout.isatty()
    console = Console(markup=False, highlight=False, width=None if terminal else WIDTH)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str) and not terminal)


def remark(text: str, quiet: bool) -> None:
    """A line on standard error, unless people want none."""
    if not quiet:
        typer.echo(text, err=True)


@contextmanager
def progress(quiet: bool) -> Iterator[Step]:
    """Something to call with what is being done: bars where standard error is a terminal, otherwise nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        known: dict[str, Any] = {}

        def step(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = bars.add_task(what, total=None)
            bars.update(known[what], completed=done, total=total or None)

        yield step
