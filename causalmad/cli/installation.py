"""What is installed here, and what this machine has."""

from __future__ import annotations

import importlib
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal, TypeAlias

from causalmad.provenance import revision

Status: TypeAlias = Literal["good", "missing", "bad"]

_MODULES = {"scikit-learn": "sklearn"}  # import names that are not the package's
_OURS = ("test", "dev")  # extras for those who change the library


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        value: what was found.
        status: ``missing`` is something that one can do without.
        note: what is wrong, or what to type.
    """

    name: str
    value: str
    status: Status = "good"
    note: str = ""


def installation() -> tuple[Finding, ...]:
    """Versions, extras, devices, threads and the cache folder."""
    return (*_versions(), *_extras(), *_devices(), _cache())


def _versions() -> Iterator[Finding]:
    """The library and all that it cannot do without: there, of a version that it works with, and importable."""
    from packaging.requirements import Requirement

    source = revision()
    yield Finding("python", platform.python_version(), note=f"{platform.system()} {platform.machine()}")
    yield Finding(
        "causalmad", _version("causalmad") or "not installed", note=f"revision {source[:12]}" if source else ""
    )
    for text in _requires():
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        found = _version(needed.name)
        if found is None:
            yield Finding(needed.name, "not installed", "bad", f"pip install '{needed.name}{needed.specifier}'")
        elif not needed.specifier.contains(found, prereleases=True):
            yield Finding(needed.name, found, "bad", f"needed: {needed.specifier}")
        else:
            said = _import_error(_MODULES.get(needed.name, needed.name.replace("-", "_")))
            yield Finding(needed.name, found, "bad" if said else "good", said)


def _extras() -> Iterator[Finding]:
    """What brings more with it: all of its packages there, or not."""
    from packaging.requirements import Requirement

    needs: dict[str, list[str]] = {}
    for text in _requires():
        needed = Requirement(text)
        for extra in _known_extras():
            marker = needed.marker
            if marker is None or needed.name == "causalmad":
                continue
            if marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
                needs.setdefault(extra, []).append(needed.name)
    for extra, names in needs.items():
        missing = [name for name in names if _version(name) is None]
        versions = ", ".join(f"{name} {_version(name) or 'missing'}" for name in names)
        note = f"pip install 'causalmad[{extra}]'" if missing else ""
        yield Finding(f"extra {extra}", versions, "missing" if missing else "good", note)


def _devices() -> Iterator[Finding]:
    """Where models can run, and on how many threads."""
    try:
        import torch
    except Exception:  # stands among the versions already
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS")
    note = "" if given is None else f"OMP_NUM_THREADS={given}"
    yield Finding("threads of torch", f"{torch.get_num_threads()} on {cores} cores", note=note)
    yield Finding("device cpu", platform.processor() or platform.machine())
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(number)
        yield Finding(f"device cuda:{number}", f"{about.name}, {about.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        yield Finding("device mps", "Apple's graphics processor")


def _cache() -> Finding:
    """Where trained models of tasks are kept: whether they can be."""
    from causalmad.tasks.cache import cache_folder

    folder = cache_folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    kept = folder / "tasks"
    count = sum(1 for path in kept.iterdir() if path.is_dir()) if kept.is_dir() else 0
    value = f"{_home(folder)}, {count} trained models"
    try:
        with tempfile.TemporaryFile(dir=there):
            return Finding("cache folder", value)
    except OSError as error:
        note = f"cannot be written ({error.strerror}), so models are trained every time; set CAUSALMAD_CACHE"
        return Finding("cache folder", value, "bad", note)


def _home(folder: Path) -> str:
    """A path as people write it."""
    home = Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)


def _requires() -> list[str]:
    """The requirements that the installed library declares; none where it runs from a folder."""
    try:
        return requires("causalmad") or []
    except PackageNotFoundError:
        return []


def _known_extras() -> list[str]:
    from importlib.metadata import metadata

    return [name for name in metadata("causalmad").get_all("Provides-Extra") or [] if name not in _OURS]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _import_error(module: str) -> str:
    """What importing says when it fails; what a package prints meanwhile goes to standard error."""
    try:
        with redirect_stdout(sys.stderr):
            importlib.import_module(module)
    except Exception as error:  # whatever a broken installation raises
        return f"cannot be imported: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""
