"""Kept inputs: the trusted inputs with which a signature compares every input, except an input with itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from causalmad.errors import FitError
from causalmad.inputs import Inputs


def distinct(trusted: Inputs, most: int | None = None, seed: int = 0, least: int = 2) -> Inputs:
    """The trusted inputs in the order of their contents, each content once; at most ``most`` of them, drawn by seed.

    The order in which trusted inputs come decides nothing.

    Raises:
        FitError: when fewer than ``least`` are left.
    """
    _, rows = np.unique(np.array(trusted.digests), return_index=True)
    if most is not None and len(rows) > most:
        rows = rows[np.sort(np.random.default_rng([seed, 3]).permutation(len(rows))[:most])]
    if len(rows) < least:
        raise FitError(
            f"{len(rows)} distinct trusted inputs",
            needed=f"at least {least}: a trusted input is compared with others, never with itself",
            tries=["more trusted inputs"],
        )
    return trusted[rows]


def own_rows(inputs: Inputs, digests: Sequence[str]) -> npt.NDArray[np.int64]:
    """(n,) which of the kept contents each input is itself; -1 where it is none of them."""
    known = {digest: row for row, digest in enumerate(digests)}
    return np.array([known.get(digest, -1) for digest in inputs.digests], dtype=np.int64)


def others(inputs: Inputs, digests: Sequence[str]) -> npt.NDArray[np.bool_]:
    """(n, kept) which kept inputs are not the input itself."""
    found: npt.NDArray[np.bool_] = own_rows(inputs, digests)[:, None] != np.arange(len(digests))
    return found
