"""What it means that a law holds, is broken, or is excused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# (law, part) -> why this part is known not to keep this law. An excuse that is no longer needed is a failure.
EXCUSED: Mapping[tuple[str, str], str] = {}


class LawBroken(AssertionError):  # noqa: N818
    """A part does not keep a law.

    Args:
        law: the law, as a sentence.
        expected: what would have been right.
        found: what was there.
    """

    def __init__(self, law: str, expected: str, found: str) -> None:
        super().__init__(f"{law}\n  Expected: {expected}\n  Found: {found}")
        self.law, self.expected, self.found = law, expected, found


def hold(law: Callable[..., None], part: str, *args: Any, excused: Mapping[tuple[str, str], str] = EXCUSED) -> None:
    """Nothing, where a part keeps a law, or is excused from it and breaks it.

    Args:
        law: one of the functions of this package.
        part: the part's name in the catalogue.
        args: what the law is called with.
        excused: (name of the law, name of the part) -> the reason.

    Raises:
        LawBroken: where the part breaks the law, or keeps a law that it is excused from.
    """
    name = law.__name__
    reason = excused.get((name, part))
    if reason is None:
        law(*args)
        return
    try:
        law(*args)
    except LawBroken:
        return
    raise LawBroken(f"{part} is excused from {name}: {reason}", "a broken law", "the law holds: drop the excuse")
