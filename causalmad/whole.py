"""Files that are written whole or not at all, and read whole."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from causalmad.errors import StoreError

_LONG = 200  # bytes of a name; most systems allow 255


def write_whole(path: Path, parts: Iterable[str] | bytes) -> Path:
    """Write text or bytes to a file at once or not at all: a temporary file beside it, synced, then renamed.

    A reader sees the old file or the new one, also after a crash in the middle.

    Args:
        path: the file; its folder has to be there. A link stays a link, and what it points to is written.
        parts: the text, piece by piece; or bytes.

    Raises:
        OSError: when it cannot be written; the old file is then as it was.
    """
    if path.is_dir():  # also "." and "", which have no name to put a temporary file beside
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    # Threads of one process, and processes on two machines with one disk, must not meet in one temporary file.
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    fresh = target.with_name(f".{short(target.name)}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with fresh.open("wb") as file:
            file.writelines([parts] if isinstance(parts, bytes) else (part.encode() for part in parts))
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, target)
    finally:
        fresh.unlink(missing_ok=True)
    return path


def short(name: str) -> str:
    """The name of a file, or another one for it alone where it is so long that little can be added to it."""
    whole = os.fsencode(name)
    return name if len(whole) <= _LONG else f"{name[:40]}-{hashlib.blake2b(whole, digest_size=8).hexdigest()}"


def require_elsewhere(folder: Path) -> None:
    """A folder that is replaced as a whole is not the one that this process works in.

    Raises:
        StoreError: when it is: the process, and the shell that started it, would be left in a folder that is gone.
    """
    try:
        here = folder.resolve() == Path.cwd().resolve()
    except OSError:  # we are nowhere already
        return
    if here:
        raise StoreError(
            f"{folder.resolve()} is the folder that this process works in, and a detector's folder is replaced whole",
            needed="another folder, so that this process does not end up in one that is gone",
            tries=['fitted.save("detector")', "--out detector", "work in the folder above"],
        )


def read_whole(path: Path) -> bytes:
    """The content of a regular file: a pipe could keep us waiting, and a device would never end.

    Raises:
        OSError: when it cannot be read, or is no regular file.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return path.read_bytes()
