"""Provenance: versions and the revision of the code that a result depends on."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    known = {"python": platform.python_version()}
    for name in ("causalmad", "torch", "numpy", "scikit-learn", "transformers", "nnsight"):
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            continue
    return known


def revision() -> str | None:
    """The git revision of the source tree that runs, with ``+`` after it where files were changed; None elsewhere."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return None
    try:
        called = [
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=10, check=True).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return called[0].strip() + ("+" if called[1].strip() else "")
