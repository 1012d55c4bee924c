"""Errors that teach: what was passed, what was needed, likely causes, what to type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager


class CausalmadError(Exception):
    """Base of every error that causalmad raises on purpose.

    Args:
        what: what was passed or what happened.
        needed: what would have been right.
        causes: likely causes, most likely first.
        tries: what to type or do instead.
    """

    def __init__(self, what: str, *, needed: str = "", causes: Sequence[str] = (), tries: Sequence[str] = ()) -> None:
        lines = [what]
        if needed:
            lines.append(f"  Needed: {needed}")
        if causes:
            lines.append(f"  Likely causes: {' | '.join(causes)}")
        if tries:
            lines.append(f"  Try one of: {' | '.join(tries)}" if len(tries) > 1 else f"  Try: {tries[0]}")
        super().__init__("\n".join(lines))
        self.what = what
        self.needed = needed
        self.causes = tuple(causes)
        self.tries = tuple(tries)

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only fields do not survive the default reduction, and worker processes must hand errors back.
        return _rebuild, (type(self), self.what, self.needed, self.causes, self.tries)


def _rebuild(
    cls: type[CausalmadError], what: str, needed: str, causes: Sequence[str], tries: Sequence[str]
) -> CausalmadError:
    return cls(what, needed=needed, causes=causes, tries=tries)


class SpecError(CausalmadError):
    """An unknown part or option name, or an option value of the wrong kind."""


class SiteError(CausalmadError):
    """A place that the model does not have, or that cannot be read."""


class InputsError(CausalmadError):
    """Data that cannot be turned into inputs for the model."""


class ModelError(CausalmadError):
    """An object that is no model, or a model whose output cannot be read."""


class FitError(CausalmadError):
    """Trusted data on which a signature or a reference cannot be fitted."""


class CalibrationError(CausalmadError):
    """An error rate that the calibration inputs cannot support."""


class StoreError(CausalmadError):
    """A saved detector that is damaged, of another version, or made on another model."""


class CacheError(CausalmadError):
    """A cache of signatures that cannot be used, or a signature that no cache can hold."""


class HypothesisError(CausalmadError):
    """A claim about a circuit that cannot be tested as written."""


class TaskError(CausalmadError):
    """A task that cannot be loaded, or whose model did not learn what the task needs."""


class CacheWarning(UserWarning):
    """A cache of signatures that helps less than it should: damaged, full, or read-only. No result depends on it."""


@contextmanager
def blaming(path: str) -> Iterator[None]:
    """A block in which whatever fails is an error of the file that its numbers were read from.

    Args:
        path: the file or folder; without one, errors are as they are.

    Raises:
        StoreError: in place of any error that is none of causalmad's own, which is then its cause.
    """
    try:
        yield
    except CausalmadError:
        raise
    except Exception as error:
        if not path:
            raise
        raise StoreError(
            f"{path} does not describe a detector that can be used: {type(error).__name__}: {error}",
            causes=["files that were changed and sealed anew", "another version of causalmad or of a plug-in"],
            tries=["fit and save again"],
        ) from error


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The ``count`` known names most like ``name``, best first (never empty while something is known)."""
    names = list(dict.fromkeys(known))
    found = difflib.get_close_matches(name, names, n=count, cutoff=0.0)
    return found or names[:count]
