"""What surrounds a program: a full disk, a folder that cannot be written, a clock that jumps, two at once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import causalmad as cm
from causalmad import FittedDetector, Monitor
from causalmad.cli.files import write_lines
from causalmad.errors import CausalmadError, StoreError
from causalmad.evaluation.logs import Log, place
from causalmad.testing.toys import toy
from tests.faults.kill import spawn, wait
from tests.faults.kills import _fitted, _scores
from tests.faults.plain import _cached, _logs
from tests.faults.watch import Fault

MADE = toy("mlp", trusted=80, fresh=300)


@contextmanager
def small_disk(kilobytes: int) -> Iterator[tuple[Path, str]]:
    """A file system with so little room, and what it is: a tmpfs where one may be mounted, else a limit of files."""
    import resource
    import signal

    folder = Path(tempfile.mkdtemp())
    options = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    mounted = subprocess.run(options, capture_output=True, check=False).returncode == 0
    if mounted:
        try:
            yield folder, "tmpfs"
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
            folder.rmdir()
        return
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, hard))
    try:
        yield folder, "RLIMIT_FSIZE"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder as one in which nothing can be written, for root too where it may be mounted so."""
    bound = subprocess.run(["mount", "--bind", str(folder), str(folder)], capture_output=True, check=False)
    if bound.returncode == 0:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(0o755)


def disk_full() -> None:
    """With every amount of room: all of it is written, or a named error leaves what was there."""
    _scores(0), _scores(1)
    for kilobytes in (4, 8, 16, 24, 32, 48, 64, 96, 128, 256):
        with small_disk(kilobytes) as (folder, _):
            before = None
            with contextlib.suppress(StoreError):
                _fitted(0).save(folder / "det")
                before = 0
            saved = before
            try:
                _fitted(1).save(folder / "det")
                saved = 1
            except StoreError as error:
                if "cannot be written" not in str(error):
                    raise
            if saved is not None:
                found = FittedDetector.load(folder / "det", MADE.model).score(MADE.fresh)
                if not np.array_equal(found, _scores(saved)):
                    raise Fault(f"{kilobytes} kB: not the detector that was saved")
            _each_writer(folder)


def _each_writer(folder: Path) -> None:
    """What else is written there, until nothing fits any more."""
    (folder / "filler").write_bytes(b"")
    monitor = Monitor(_fitted(0), alpha=0.1)
    with contextlib.suppress(StoreError):
        monitor.save(folder / "m.json")
        if Monitor.load(folder / "m.json", _fitted(0)).state() != monitor.state():
            raise Fault("half a monitor")
    lines = [json.dumps({"id": i}) for i in range(3000)]
    with contextlib.suppress(CausalmadError):
        write_lines(str(folder / "out.jsonl"), lines)
    if (folder / "out.jsonl").exists() and (folder / "out.jsonl").read_text().splitlines() != lines:
        raise Fault("half a file of lines")
    one = _logs()[0]
    with contextlib.suppress(CausalmadError):
        one.write(folder)
    path = place(folder, one.task, one.detector, one.seed)
    if path.exists():
        Log.read(path)
    _require_computed(folder)


def _require_computed(folder: Path) -> None:
    """Caches cost a warning where they cannot be written, and no result."""
    with mock.patch.dict(os.environ, {"CAUSALMAD_CACHE": str(folder)}):
        if not all(bool((value == 1).all()) for value in _cached()[0].parameters()):
            raise Fault("other weights than those that were trained")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            values = cm.extract(_fitted(0), MADE.fresh, cache=folder / "cache", shard=32).values
        except CausalmadError:
            return
    if not np.array_equal(values, _fitted(0).signature(MADE.fresh).values):
        raise Fault("other signatures than those that were computed")


def folder_read_only() -> None:
    """What is there is read; what cannot be written is said by name, and no result depends on it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _fitted(0).save(folder / "det")
        cm.extract(_fitted(0), MADE.fresh[:40], cache=folder / "cache", shard=16)
        with read_only(folder):
            if not np.array_equal(FittedDetector.load(folder / "det", MADE.model).score(MADE.fresh), _scores(0)):
                raise Fault("another detector")
            for write in (
                lambda: _fitted(1).save(folder / "det"),
                lambda: _fitted(1).save(folder / "new"),
                lambda: Monitor(_fitted(0), alpha=0.1).save(folder / "m.json"),
                lambda: write_lines(str(folder / "out.jsonl"), ["{}"]),
                lambda: _logs()[0].write(folder),
            ):
                try:
                    write()
                except CausalmadError:
                    continue
                raise Fault("written where nothing can be")
            _require_computed(folder)


def clock_jumps() -> None:
    """Years forward, years back, and standing still: nothing that is computed or kept depends on the time."""
    with tempfile.TemporaryDirectory() as name:
        folder, real = Path(name), time.time
        wanted = _fitted(0).signature(MADE.fresh).values
        for turn, shift in enumerate((0.0, 3e8, -3e8, 1e4, -1.5e9)):
            with mock.patch.object(time, "time", lambda shift=shift: max(0.0, real() + shift)):
                _fitted(turn % 2).save(folder / "det")
                for path in folder.rglob("*"):
                    os.utime(path, (max(0.0, real() - shift), max(0.0, real() - shift)))
                found = FittedDetector.load(folder / "det", MADE.model).score(MADE.fresh)
                if not np.array_equal(found, _scores(turn % 2)):
                    raise Fault(f"another detector after {shift:g} s")
                if not np.array_equal(cm.extract(_fitted(0), MADE.fresh, cache=folder / "cache").values, wanted):
                    raise Fault(f"other signatures after {shift:g} s")
                with mock.patch.dict(os.environ, {"CAUSALMAD_CACHE": str(folder)}):
                    _cached()


def saves_at_once() -> None:
    """Several processes save to one folder while others load from it: each load finds one whole detector."""
    _scores(0), _scores(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _fitted(0).save(folder / "det")

        def save(seed: int) -> None:
            for _ in range(15):
                _fitted(seed).save(folder / "det")

        def load() -> None:
            for _ in range(40):
                found = FittedDetector.load(folder / "det", MADE.model).score(MADE.fresh)
                if not any(np.array_equal(found, _scores(seed)) for seed in (0, 1)):
                    raise Fault("neither of two detectors")

        workers = [spawn(lambda: save(1)), spawn(load), spawn(load)]
        codes = [wait(pid) for pid in workers]
        if any(codes):
            raise Fault(f"processes ended with {codes}")
        load()


CASES: tuple[Callable[[], Any], ...] = (disk_full, folder_read_only, clock_jumps, saves_at_once)
