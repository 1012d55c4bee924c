"""What every command does with errors: one message on stderr and exit code 2, never a traceback unless asked."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, ParamSpec

import typer

from causalmad.errors import CausalmadError

P = ParamSpec("P")

FLAGGED, FAILED, INTERRUPTED = 1, 2, 130

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks on standard error.")]


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """The command, with its errors as messages; it must take ``debug``."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except typer.Exit:
            raise
        except BrokenPipeError:  # whoever read our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if type(error).__module__.partition(".")[0] in (
                "typer",
                "click",
            ):  # their own usage errors, which they show themselves
                raise
            if kwargs.get("debug"):
                traceback.print_exc()
            else:
                typer.echo(_message(error), err=True)
            raise typer.Exit(FAILED) from None

    return run


def _message(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if isinstance(error, CausalmadError) else f"{text}\n  --debug shows where it happened."
