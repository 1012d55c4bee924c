"""Lazy imports: names that are imported when they are first used, and the nearest ones to a name that is not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lazy_loader

from causalmad.errors import nearest


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """A package's ``__getattr__``, ``__dir__`` and ``__all__``, from the ``__init__.pyi`` beside its file.

    Args:
        package: its name.
        file: its ``__init__.py``.
    """
    found, listed, names = lazy_loader.attach_stub(package, file)

    def get(name: str) -> Any:
        if name in names or name.startswith("_"):
            return found(name)
        try:
            return found(name)
        except AttributeError:
            close = ", ".join(f"{package}.{each}" for each in nearest(name, names))
            raise AttributeError(f"there is no {package}.{name}; the nearest are {close}") from None

    return get, listed, names
