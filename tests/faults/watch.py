"""One attempt under watch: what came of it, how long it took, how much memory, and what it touched."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causalmad.errors import CausalmadError

SECONDS = 20.0
GIB = 1 << 30
# Nothing that reads a file may do these; what writes files is told by its path.
_NEVER = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "socket.connect",
    "socket.getaddrinfo",
    "pickle.find_class",
    "code.__new__",
    "webbrowser.open",
    "urllib.Request",
}
_WRITES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}


class Fault(AssertionError):
    """Something that must not happen: a wrong result, a write elsewhere, code that ran."""


class Hang(BaseException):
    """An attempt took too long; no Exception, so that nothing swallows it."""


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt.

    Attributes:
        kind: ``refused`` (a named error), ``right`` (a correct result) or ``fault``.
        detail: the error, or what is wrong.
    """

    kind: str
    detail: str = ""


@dataclass
class _Watched:
    """What the audit hook looks at while an attempt lasts."""

    folder: str = ""
    thread: int = 0
    found: list[str] | None = None


_NOW = _Watched()
_HOOKED: list[bool] = []


def judge(attempt: Callable[[], None], folder: Path, named: type[BaseException] = CausalmadError) -> Outcome:
    """Run an attempt that raises :class:`Fault` on a wrong result.

    Args:
        attempt: what is tried.
        folder: the only place where it may write.
        named: the errors that are an answer.
    """
    if not _HOOKED:
        sys.addaudithook(_audit)  # a hook is never taken away again
        _HOOKED.append(True)
    before, found = _peak(reset=True), []
    outcome = Outcome("right")
    try:
        with _limited(), _alarm(SECONDS):
            _NOW.folder, _NOW.thread, _NOW.found = os.path.realpath(folder), threading.get_ident(), found
            try:
                attempt()
            finally:
                _NOW.found = None
    except named as error:
        outcome = Outcome("refused", f"{type(error).__name__}: {str(error).splitlines()[0][:160]}")
        if _starved(error):
            outcome = Outcome("fault", f"memory: {_chain(error)}")
    except Hang:
        outcome = Outcome("fault", f"more than {SECONDS:g} s")
    except Fault as error:
        outcome = Outcome("fault", str(error))
    except BaseException as error:
        outcome = Outcome("fault", f"{_chain(error)} at {_where(error)}")
    grown = _peak() - before
    if grown > GIB:
        outcome = Outcome("fault", f"{grown / GIB:.1f} GiB of memory")
    if found:
        outcome = Outcome("fault", f"touched {', '.join(found[:3])}")
    return outcome


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _NOW.found is None or threading.get_ident() != _NOW.thread:
        return
    if event in _NEVER:
        _NOW.found.append(f"{event} {str(args)[:80]}")
    elif event in _WRITES or (event == "open" and _written(args)):
        path = args[0]
        if event in ("os.remove", "os.rmdir") and isinstance(args[-1], int) and args[-1] >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{args[-1]}"), os.fsdecode(path))
        if isinstance(path, (str, bytes, os.PathLike)) and not _inside(os.fsdecode(path)):
            _NOW.found.append(f"{event} {os.fsdecode(path)[:120]}")


def _written(args: tuple[Any, ...]) -> bool:
    mode, flags = args[1], args[2]
    if isinstance(mode, str) and mode:
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _inside(path: str) -> bool:
    full = os.path.realpath(path)
    return full == os.devnull or full == _NOW.folder or full.startswith(_NOW.folder + os.sep)


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise Hang

    # Of the processor; and by the clock ten times as long, so that neither a busy machine nor a wait is taken wrongly.
    timers = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 10 * seconds))
    before = [signal.signal(number, ring) for number, _, _ in timers]
    try:
        for _, timer, most in timers:
            signal.setitimer(timer, most)
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


@contextmanager
def _limited(room: int = 4 * GIB) -> Iterator[None]:
    """Address space for as much again, so that what asks for all there is fails here and not the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _peak(reset: bool = False) -> int:
    """Bytes of memory in use at most since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def _starved(error: BaseException) -> bool:
    """Whether there was not enough memory somewhere behind an error."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or "allocate" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _chain(error: BaseException) -> str:
    names = []
    seen: BaseException | None = error
    while seen is not None and len(names) < 4:
        names.append(f"{type(seen).__name__}: {str(seen).splitlines()[0][:100] if str(seen) else ''}")
        seen = seen.__cause__
    return " <- ".join(names)


def _where(error: BaseException) -> str:
    """The last frames of an error, innermost last."""
    frames = traceback.extract_tb(error.__traceback__)
    return " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-4:])
