"""Shards: some rows of signatures in one file, named by the digest of its bytes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.digests import WIDTH, Keys
from causalmad.whole import write_whole

Values = npt.NDArray[np.float32]

SUFFIX = ".safetensors"
_PIECE = 2**20


@dataclass(frozen=True, eq=False)
class Shard:
    """Some rows, in memory or mapped from a file.

    Attributes:
        keys: (m, 16) digest of each row's input.
        values: (m, d) the rows.
    """

    keys: Keys
    values: Values

    def __len__(self) -> int:
        return len(self.keys)


class DamagedShardError(Exception):
    """A file that is not what was written under its name."""


def write_shard(folder: Path, shard: Shard) -> str:
    """Write a shard as a safetensors file, whole or not at all.

    Args:
        folder: where it goes; it has to be there.
        shard: the rows.

    Returns:
        Its name: the digest of its bytes. The same rows give the same file, whoever writes them.

    Raises:
        OSError: when it cannot be written.
    """
    from safetensors.numpy import save

    data = save({"keys": np.ascontiguousarray(shard.keys), "values": np.ascontiguousarray(shard.values)})
    name = f"{hashlib.blake2b(data, digest_size=16).hexdigest()}{SUFFIX}"
    write_whole(folder / name, data)
    return name


def check_shard(path: Path, width: int) -> Keys:
    """(m, 16) keys of the rows in a file that :func:`write_shard` wrote, all of which is read once and checked.

    Args:
        path: the file.
        width: how many columns it has to have.

    Raises:
        DamagedShardError: when its bytes are not those that gave it its name.
        OSError: when it cannot be read.
    """
    if _digest(path) != path.name.removesuffix(SUFFIX):
        raise DamagedShardError("its checksum differs from its name")
    try:
        keys, values = _mapped(path, "keys"), _mapped(path, "values")
    except OSError:
        raise
    except Exception as error:  # whatever a forged header, under a name that fits, makes its readers raise
        raise DamagedShardError(f"{type(error).__name__}: {error}") from error
    if (keys.dtype, values.dtype) != (np.dtype(np.uint8), np.dtype(np.float32)):
        raise DamagedShardError(f"it holds {keys.dtype} and {values.dtype}")
    if values.ndim != 2 or keys.shape != (len(values), WIDTH) or values.shape[1:] != (width,):
        raise DamagedShardError(f"it has shapes {keys.shape} and {values.shape}, not (m, {WIDTH}) and (m, {width})")
    return np.array(keys)


def map_values(path: Path) -> Values:
    """(m, d) rows of a file, mapped into memory: they are read when they are looked at.

    Raises:
        OSError: when the file is gone.
    """
    return _mapped(path, "values")


def _digest(path: Path) -> str:
    whole = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            whole.update(piece)
    return whole.hexdigest()


def _mapped(path: Path, name: str) -> npt.NDArray[Any]:
    """One array of a safetensors file: eight bytes with the length of a JSON header, the header, the numbers."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError(f"a header of {size} bytes")
        entry = json.loads(file.read(size))[name]
    kind = {"U8": np.uint8, "F32": np.float32}[entry["dtype"]]
    shape = tuple(map(int, entry["shape"]))
    if 0 in shape:
        return np.empty(shape, kind)
    return np.memmap(path, kind, "r", 8 + size + int(entry["data_offsets"][0]), shape)
