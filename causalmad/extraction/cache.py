"""A cache of signatures in a folder, which any number of processes may use at once."""

from __future__ import annotations

import errno
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from causalmad.digests import ABSENT, Digests, Keys, Numbers
from causalmad.errors import CacheError, CacheWarning
from causalmad.extraction.address import address_of
from causalmad.extraction.circumstances import circumstances
from causalmad.extraction.shards import SUFFIX, DamagedShardError, Shard, Values, check_shard, map_values, write_shard
from causalmad.models import OpenModel
from causalmad.signatures.base import FittedSignature
from causalmad.whole import write_whole

MANIFEST = "manifest.json"
_LOCK = ".lock"
_STALE = 3600.0  # seconds after which the temporary file of a process that was killed is taken away
_MAPPED = 16  # files that are mapped at a time: each takes a file descriptor
_ROWS = 2**32  # of a shard, at most: a location is its number times this, plus the row


class Cache:
    """A folder that keeps signatures by what they depend on: the model, the fitted signature and each input.

    Nothing in it can be out of date, and it may be deleted at any time. It can be passed wherever a folder can; an
    opened cache hashes the model once for each signature, so open a new one when the weights have changed.

    Args:
        folder: made if it is not there.

    Raises:
        CacheError: when the folder can be neither made nor read.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()  # also when the process goes elsewhere later
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            os.scandir(self.folder).close()
        except OSError as error:
            raise CacheError(
                f"{Path(folder)} cannot be used as a cache: {error.strerror}",
                needed="a folder, or a place where one can be made",
                causes=["a file of that name", "no permission there"],
                tries=["another folder", "cache=None"],
            ) from error
        self._opened: list[tuple[FittedSignature, dict[str, Any], Kept]] = []

    def __repr__(self) -> str:
        """Where it is."""
        return f"Cache({str(self.folder)!r})"

    def of(self, signature: FittedSignature, spec: Any, model: OpenModel) -> Kept:
        """What is kept of a fitted signature.

        Args:
            signature: what is computed.
            spec: of which it is the fit.
            model: on which it is fitted.

        Raises:
            CacheError: when it is a signature that cannot be saved.
        """
        now = circumstances(model.module)
        for known, then, kept in self._opened:
            if known is signature and then == now:
                return kept
        address = address_of(signature, spec, model)
        kept = Kept(len(signature.columns), self.folder / address.name)
        kept.describe({**address.about, "columns": [column.name for column in signature.columns]})
        self._opened.append((signature, now, kept))
        return kept


Keeps: TypeAlias = "str | os.PathLike[str] | Cache | None"


def opened(cache: Keeps) -> Cache | None:
    """A cache as it is, or the one in a folder."""
    return cache if cache is None or isinstance(cache, Cache) else Cache(cache)


class Kept:
    """Rows of one fitted signature: in the shards of a folder, and in memory where they cannot be written.

    Args:
        width: columns.
        folder: of the shards; None keeps all in memory.
    """

    def __init__(self, width: int, folder: Path | None = None) -> None:
        self.width, self.folder = width, folder
        self._shards: list[Path | Values] = []
        self._index = Digests()
        self._names: set[str] = set()
        self._writes = folder is not None
        self._map = _mapper()
        if folder is not None:
            try:
                folder.mkdir(exist_ok=True)
            except OSError as error:
                self._keep_in_memory(error)
            _sweep(folder)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map = _mapper()

    def describe(self, about: dict[str, Any]) -> None:
        """Write down, for people, what the rows are of; nothing depends on this file."""
        if self.folder is None or not self._writes or (self.folder / MANIFEST).exists():
            return
        try:
            write_whole(self.folder / MANIFEST, [json.dumps(about, indent=1)])
        except OSError as error:
            self._keep_in_memory(error)

    def refresh(self) -> None:
        """Look for shards that this or another process has written since; each is checked before it is believed."""
        if self.folder is None:
            return
        try:
            with os.scandir(self.folder) as entries:
                names = {entry.name for entry in entries if entry.name.endswith(SUFFIX)}
        except FileNotFoundError:
            return
        for name in sorted(names - self._names):
            if name.startswith("."):
                continue  # being written
            path = self.folder / name
            try:
                self._enter(path, check_shard(path, self.width))
                self._names.add(name)
            except DamagedShardError as error:
                _warn(f"{path} is damaged ({error}): it is left out, and its rows are computed again")
                self._names.add(name)
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                    self._names.discard(name)  # the same rows will get the same name
            except FileNotFoundError:
                continue  # another process found it damaged; the same rows will get the same name
            except OSError as error:
                _warn(f"{path} cannot be read ({error.strerror}): its rows are computed again")
                self._names.add(name)

    def find(self, keys: Keys) -> Numbers:
        """(n,) where the row of each input is kept, negative where it is not."""
        return self._index.find(keys)

    def add(self, shard: Shard) -> None:
        """Keep some rows; they are on disk, whole, when this returns, or a warning says why they are not."""
        if shard.values.shape != (len(shard.keys), self.width):
            raise CacheError(
                f"{shard.values.shape} signatures of {len(shard.keys)} inputs", needed=f"(n, {self.width})"
            )
        if self.folder is not None and self._writes:
            try:
                name = write_shard(self.folder, shard)
            except OSError as error:
                self._keep_in_memory(error)
            else:
                # Also under a name that is known: the file may have been left out as damaged or unreadable.
                self._names.add(name)
                self._enter(self.folder / name, shard.keys)
                return
        self._enter(shard.values, shard.keys)

    def read(self, where: Numbers) -> Values:
        """(m, d) the rows at some places, in that order.

        Raises:
            CacheError: when a file was taken away in the meantime.
        """
        found = np.empty((len(where), self.width), dtype=np.float32)
        numbers, rows = where // _ROWS, where % _ROWS
        for number in np.unique(numbers):
            here = numbers == number
            shard = self._shards[number]
            try:
                values = self._map(shard) if isinstance(shard, Path) else shard
            except OSError as error:
                raise CacheError(
                    f"{shard} cannot be read any more: {error.strerror}",
                    causes=["somebody deleted the cache while it was in use"],
                    tries=["the same call again: what is missing is computed"],
                ) from error
            found[here] = values[rows[here]]
        return found

    @contextmanager
    def first(self) -> Iterator[bool]:
        """Whether no other process computes rows of this signature now; for as long as it lasts, none will be."""
        if self.folder is None or not self._writes:
            yield True
            return
        try:
            import fcntl
        except ImportError:  # no such locks on Windows: processes then may do the same work, which is safe
            yield True
            return
        try:
            lock = (self.folder / _LOCK).open("wb")
        except OSError:
            yield True
            return
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it when the process dies
                alone = True
            except OSError:
                alone = False
            yield alone

    def _enter(self, shard: Path | Values, keys: Keys) -> None:
        number = len(self._shards)
        self._shards.append(shard)
        fresh = self._index.find(keys) == ABSENT
        self._index.add(keys[fresh], np.flatnonzero(fresh) + number * _ROWS)

    def _keep_in_memory(self, error: OSError) -> None:
        self._writes = False
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "is full" if full else f"cannot be written ({error.strerror})"
        _warn(f"{self.folder} {why}: what is computed from here on is kept in memory, and not for later")


def _mapper() -> Callable[[Path], Values]:
    """Maps files into memory, the last few of which stay mapped."""
    return lru_cache(_MAPPED)(map_values)


def _sweep(folder: Path) -> None:
    """Take away what processes that were killed had begun to write."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            begun = entry.name.startswith(".") and entry.name != _LOCK
            if begun and time.time() - entry.stat().st_mtime > _STALE:
                os.unlink(entry.path)


def _warn(text: str) -> None:
    warnings.warn(CacheWarning(text), stacklevel=3)
