"""Writing of the command line's files: ``-`` is standard output, and writes are all or nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from causalmad.errors import StoreError
from causalmad.whole import write_whole

STANDARD = "-"


def write_lines(path: str, lines: Iterable[str]) -> None:
    """Write lines to a file at once or not at all: a temporary file beside it, synced, then renamed."""
    if path == STANDARD:
        for line in lines:
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        return
    write_whole(Path(path), (f"{line}\n" for line in lines))


def require_file(path: str) -> None:
    """Make the folder of an output file now, so that nothing is computed for a place that cannot be written.

    Raises:
        StoreError: when the path is a folder, or its folder cannot be made.
    """
    if path == STANDARD:
        return
    folder = Path(path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be made: {error.strerror}") from error
    if Path(path).is_dir() or not os.access(folder, os.W_OK):
        raise StoreError(f"{path} cannot be written", causes=["it is a folder", "its folder is read-only"])


def require_folder(path: str) -> None:
    """Nothing, where a detector can be saved.

    Raises:
        StoreError: when the folder holds something other than a detector.
    """
    folder = Path(path)
    if folder.exists() and not (folder / "detector.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{path} exists and holds no detector", tries=["another folder", "empty it first"])
