"""The command line's files: ``-`` is standard input or output, and writes are all or nothing."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from causalmad.errors import SpecError, StoreError
from causalmad.whole import require_elsewhere, write_whole

STANDARD = "-"

Json = Annotated[
    str | None,
    typer.Option("--json", help="Write the numbers here as JSON, - for standard output.", metavar="PATH"),
]


Keep = Annotated[
    str | None,
    typer.Option("--cache", help="Keep signatures in this folder: none is computed twice.", metavar="DIR"),
]


def write_lines(path: str, lines: Iterable[str]) -> None:
    """Write lines to standard output one by one, or to a file at once or not at all.

    Raises:
        StoreError: when they cannot be written.
    """
    try:
        if path == STANDARD:
            for line in lines:
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()  # whoever reads them may wait for each
            return
        with _ended_orderly():
            write_whole(Path(path), (f"{line}\n" for line in lines))
    except BrokenPipeError:  # whoever reads has seen enough
        raise
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}", causes=["a full or read-only disk"]) from error


@contextmanager
def _ended_orderly() -> Iterator[None]:
    """While it lasts, a request to terminate ends the program as an interrupt does: no temporary file stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def write_json(path: str, data: Any) -> None:
    """Write data as indented JSON."""
    write_lines(path, [json.dumps(data, indent=1, allow_nan=False)])


def require_one_standard(**paths: str | None) -> None:
    """Nothing, where at most one option writes to standard output.

    Raises:
        SpecError: when several do.
    """
    both = [option for option, path in paths.items() if path == STANDARD]
    if len(both) > 1:
        raise SpecError(f"{' and '.join(both)} would both write to standard output", tries=[f"{both[0]} FILE"])


def require_apart(**paths: str | None) -> None:
    """Nothing, where no two of the paths are the same file.

    Raises:
        SpecError: when two are: one would replace the other.
    """
    known: dict[Path, str] = {}
    for option, path in paths.items():
        if path is None or path == STANDARD:
            continue
        other = known.setdefault(Path(path).resolve(), option)
        if other != option:
            raise SpecError(f"{other} and {option} are the same file, {path}", tries=["another name for one of them"])


def count_lines(path: str) -> int:
    """How many lines a file has that are not blank; 0 for what can be read only once."""
    if path == STANDARD or not Path(path).is_file():
        return 0
    with Path(path).open("rb") as file:
        return sum(1 for line in file if line.strip())


def require_file(path: str) -> None:
    """Make the folder of an output file now, so that nothing is computed for a place that cannot be written.

    Raises:
        StoreError: when the path is a folder, or its folder cannot be made.
    """
    if path == STANDARD:
        return
    folder = _made(Path(path).parent)
    if Path(path).is_dir() or not os.access(folder, os.W_OK):
        raise StoreError(f"{path} cannot be written", causes=["it is a folder", "its folder is read-only"])


def require_folder(path: str) -> None:
    """Make the folder that a detector's folder goes in, so that nothing is computed for what cannot be written.

    Raises:
        StoreError: when the folder holds something other than a detector, cannot be written, or is the one we work in.
    """
    folder = Path(path)
    require_elsewhere(folder)
    if not os.access(folder if folder.is_dir() else _made(folder.parent), os.W_OK):
        raise StoreError(f"{path} cannot be written", causes=["its folder is read-only"], tries=["another folder"])
    if folder.exists() and not (folder / "detector.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{path} exists and holds no detector", tries=["another folder", "empty it first"])


def require_results(folder: Path) -> None:
    """Make a folder of results, so that nothing is computed for a place that cannot be written.

    Raises:
        StoreError: when it cannot be made, or not written.
    """
    if not os.access(_made(folder), os.W_OK):
        raise StoreError(f"{folder} cannot be written", causes=["it is read-only"], tries=["another folder"])


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be made: {error.strerror}") from error
    return folder
