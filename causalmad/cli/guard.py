"""What every command does with errors: one message on stderr and exit code 2, never a traceback unless asked."""

from __future__ import annotations

import functools
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ParamSpec

import typer

from causalmad.errors import CacheWarning, CausalmadError

P = ParamSpec("P")

FLAGGED, FAILED, INTERRUPTED = 1, 2, 130

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks on standard error.")]


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """The command, with its errors as messages; it must take ``debug``."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with _told():
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


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong with a cache is said in a line, without the place in the code."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", CacheWarning)
        plain = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, CacheWarning):
                typer.echo(f"{category.__name__}: {message}", err=True)
            else:
                plain(message, category, *place, **more)

        warnings.showwarning = show  # restored by catch_warnings
        yield


def _message(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if isinstance(error, CausalmadError) else f"{text}\n  --debug shows where it happened."
