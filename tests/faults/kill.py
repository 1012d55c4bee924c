"""Killing: a process of its own, ended by SIGKILL at a random moment or at a random call to the operating system."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

# What is between the bytes of a program and the disk; a kill before or after each of them is a moment of its own.
_CALLS = {
    *("write", "writelines", "fsync", "flush", "close", "rename", "replace", "mkdir", "rmdir", "unlink", "remove"),
    *("open", "chmod", "link", "symlink", "truncate", "ftruncate", "scandir", "stat", "serialize_file", "pwrite"),
}


def spawn(work: Callable[[], Any], at: int | None = None) -> int:
    """A forked process, in a group of its own, that does some work and ends with 0, or with 1 where that fails.

    Args:
        work: what is done.
        at: kill it by itself at this one of its calls to the operating system, counted from 0.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if at is not None:
            sys.setprofile(_killer(at))
        work()
        code = 0
    finally:
        os._exit(code)


def _killer(at: int) -> Callable[[Any, str, Any], None]:
    left = [at]

    def look(frame: Any, event: str, argument: Any) -> None:
        if event in ("c_call", "c_return") and getattr(argument, "__name__", "") in _CALLS:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return look


def wait(pid: int) -> int:
    """The exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def count_calls(work: Callable[[], Any]) -> int:
    """How many calls to the operating system some work makes here."""
    seen = [0]

    def look(frame: Any, event: str, argument: Any) -> None:
        if event in ("c_call", "c_return") and getattr(argument, "__name__", "") in _CALLS:
            seen[0] += 1

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(before)
    return seen[0]


def kill(work: Callable[[], Any], draw: random.Random, seconds: float, calls: int, group: bool = True) -> bool:
    """Kill some work at a random moment of its run, or at a random call; whether it was killed before its end.

    Args:
        work: what is done.
        draw: decides when.
        seconds: how long it takes.
        calls: how many calls to the operating system it makes; 0 kills by the clock alone.
        group: kill its children too.
    """
    if calls and draw.random() < 0.5:
        return wait(spawn(work, draw.randrange(calls))) == -signal.SIGKILL
    pid = spawn(work)
    time.sleep(draw.uniform(0, seconds))
    try:
        os.killpg(pid, signal.SIGKILL) if group else os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # not a group yet
        os.kill(pid, signal.SIGKILL)
    return wait(pid) == -signal.SIGKILL
