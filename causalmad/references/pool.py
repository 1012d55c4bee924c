"""Untrusted rows for the references that compare with them: unlabelled, and never left out in silence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from causalmad.errors import FitError
from causalmad.references.base import as_rows

Array = npt.NDArray[np.float64]


def trusted_and_pool(X: npt.ArrayLike, untrusted: npt.ArrayLike | None, spec: object) -> tuple[Array, Array]:
    """Trusted rows (n, d) and untrusted rows (m, d), n and m at least 2.

    Args:
        X: trusted rows.
        untrusted: unlabelled rows, some of them perhaps anomalous.
        spec: the reference, for the messages.

    Raises:
        FitError: where there are no untrusted rows, or either is no table of finite numbers with at least two rows.
    """
    name = type(spec).__name__
    if untrusted is None:
        raise FitError(
            f"{name} got no untrusted rows",
            needed="unlabelled untrusted rows, with the columns of the trusted ones",
            causes=["the detector was fitted on trusted inputs alone"],
            tries=[
                "Detector(...).fit(model, trusted, untrusted)",
                "--untrusted FILE.jsonl",
                "a reference that needs none: Mahalanobis()",
            ],
        )
    rows = as_rows(X, what="trusted rows")
    pool = as_rows(untrusted, what="untrusted rows", columns=rows.shape[1])
    for kind, table in (("trusted", rows), ("untrusted", pool)):
        if len(table) < 2:
            raise FitError(f"{name} got {len(table)} {kind} row{'s' * (len(table) != 1)}", needed="at least 2")
    return rows, pool
