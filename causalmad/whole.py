"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, parts: Iterable[str]) -> Path:
    """Write text to a file at once or not at all: a temporary file beside it, synced, then renamed.

    A reader sees the old file or the new one, also after a crash in the middle.

    Args:
        path: the file; its folder has to be there.
        parts: the text, piece by piece.

    Raises:
        OSError: when it cannot be written; the old file is then as it was.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    return path
