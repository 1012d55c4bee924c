"""What people see: results on standard output, progress and remarks on standard error."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import typer

Step: TypeAlias = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all); 0 steps in all = their number is not known."""

WIDTH = 110
BAR, BESIDE = 12, 52  # columns of a progress bar, and of all beside it but what is being done


def show(*parts: Any) -> None:
    """Print texts and rich tables to standard output; square brackets are no markup."""
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):  # half a surrogate pair, which a text of somebody else may hold
        sys.stdout.reconfigure(errors="backslashreplace")
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
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=BAR),
        TextColumn("{task.fields[pace]}", markup=False),
        TimeElapsedColumn(),
    )
    # Lines for people go above the bars; lines for a file or a program go where they belong, past rich.
    both = sys.stdout.isatty()
    console = Console(stderr=True)
    room = max(console.width - BAR - BESIDE, 16)
    with Progress(*columns, console=console, transient=True, redirect_stdout=both) as bars:
        known: dict[str, Any] = {}

        def step(what: str, done: int, total: int) -> None:
            if what not in known:
                # How fast and how long still is what a narrow terminal has to show.
                known[what] = bars.add_task(
                    what if len(what) <= room else f"{what[: room - 3]}...", total=None, pace=""
                )
            task = next(task for task in bars.tasks if task.id == known[what])
            if done < task.completed:  # another round over the same inputs
                bars.reset(known[what])
            pace = _pace(done, total, task.elapsed or 0.0)
            bars.update(known[what], completed=done, total=total or None, pace=pace)

        yield step


def _pace(done: int, total: int, seconds: float) -> str:
    """How far, how fast and how long still, where there is more than one step."""
    if done < 1 or total == 1 or seconds <= 0:
        return ""
    speed = done / seconds
    far = f"{done:,}/{total:,}" if total else f"{done:,}"
    left = round((total - done) / speed)
    rest = f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left" if total > done else ""
    return f"{far}, {speed:,.0f}/s{rest}" if speed >= 10 else f"{far}, {speed:.2g}/s{rest}"
