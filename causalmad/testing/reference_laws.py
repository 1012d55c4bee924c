"""Laws of references: tables of numbers in, scores out."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.errors import CausalmadError, StoreError
from causalmad.references.estimators import fit_reference
from causalmad.testing.law import LawBroken

Array = npt.NDArray[np.float64]


def law_rows_stand_alone(spec: Any) -> None:
    """A row's score does not depend on the other rows, their order or their number."""
    law = "a row's score depends on this row only"
    fitted = _fit(spec, _rows(60), seed=1)
    new = _rows(25, seed=1)
    whole = fitted.score_samples(new)
    _require_same_bits(law, "the same call again", whole, fitted.score_samples(new))
    _require_close(law, "reversed order", whole[::-1], fitted.score_samples(new[::-1]))
    _require_close(law, "one by one", whole, np.concatenate([fitted.score_samples(row[None]) for row in new]))
    _require_close(law, "among others", whole, fitted.score_samples(np.concatenate([_rows(40, 2) * 9, new]))[40:])


def law_higher_is_more_normal(spec: Any) -> None:
    """Rows far from all trusted ones score below the trusted median: the sign of scikit-learn."""
    trusted = _rows(60)
    fitted = _fit(spec, trusted, seed=1)
    far = fitted.score_samples(trusted.mean(0) + 30 * trusted.std(0) * np.array([[1.0, -1, 1, 1, -1]]))
    usual = float(np.median(fitted.score_samples(trusted)))
    if not far[0] < usual:
        raise LawBroken("higher is more normal", f"a far row scores below {usual:g}", f"{far[0]:g}")


def law_contributions_sum_to_the_score(spec: Any) -> None:
    """Where there are contributions, they sum over columns to the anomaly score, which is ``-score_samples``."""
    fitted: Any = _fit(spec, _rows(60), seed=1)
    if not hasattr(fitted, "contributions"):
        return
    new = np.concatenate([_rows(20, 3), _rows(5, 4) * 50])
    parts = fitted.contributions(new)
    if parts.shape != new.shape:
        raise LawBroken("a contribution for every row and column", str(new.shape), str(parts.shape))
    _require_close("contributions sum to the anomaly score", "their sum", -fitted.score_samples(new), parts.sum(1))


def law_state_restores(spec: Any) -> None:
    """Where there is a state, what is restored from it gives the same bits."""
    fitted: Any = _fit(spec, _rows(60), seed=1)
    if not hasattr(fitted, "state"):
        return
    new = _rows(20, 3)
    try:
        state = fitted.state()
    except StoreError:  # a scikit-learn estimator, alone or inside another reference: it is fitted again instead
        return
    again = spec.restore({key: np.array(value) for key, value in state.items()})
    _require_same_bits("restore(state()) is the fit", "restored", fitted.score_samples(new), again.score_samples(new))


def law_same_seed_same_bits(spec: Any) -> None:
    """The same seed gives the same bits whatever the global generators hold, which stay as they are."""
    found = []
    kept, own = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        for start in (0, 1):
            np.random.seed(start)  # noqa: NPY002
            random.seed(start)
            before = repr(np.random.get_state()), random.getstate()  # noqa: NPY002
            found.append(_fit(spec, _rows(60), seed=7).score_samples(_rows(20, 3)))
            if before != (repr(np.random.get_state()), random.getstate()):  # noqa: NPY002
                raise LawBroken("global generators stay as they are", "no draw from them", "another state after")
    finally:
        np.random.set_state(kept)  # noqa: NPY002
        random.setstate(own)
    _require_same_bits("the same seed gives the same bits", "another global state", found[0], found[1])


def law_spec_stays_unfitted(spec: Any) -> None:
    """Fitting leaves the spec, and the trusted rows, as they were."""
    rows = _rows(60)
    before, table = _attributes(spec), rows.copy()
    _fit(spec, rows, seed=0).score_samples(rows)
    if _attributes(spec) != before or not np.array_equal(rows, table):
        raise LawBroken("fitting changes nothing that was passed", before, _attributes(spec))


def law_bad_rows_are_named(spec: Any) -> None:
    """Bad rows give a named error, degenerate ones a named error or finite scores."""
    trusted = _rows(30)
    fitted = _fit(spec, trusted, seed=0)
    holed, endless = trusted.copy(), trusted.copy()
    holed[3, 1], endless[2, 2] = np.nan, np.inf
    bad: dict[str, Any] = {
        "NaN": holed,
        "infinity": endless,
        "a single row without its axis": trusted[0],
        "three axes": trusted[None],
        "no columns": trusted[:, :0],
        "text": np.array([["a"] * 5] * 4),
        "complex numbers": trusted + 1j,
        "ragged lists": [[1.0, 2.0], [3.0]],
    }
    for case, rows in bad.items():
        _require_named(f"trusted rows: {case}", partial(_fit, spec, rows, seed=0))
        _require_named(f"rows to score: {case}", partial(fitted.score_samples, rows))
    _require_named("no trusted rows", lambda: _fit(spec, trusted[:0], seed=0))
    _require_named("rows to score: another width", lambda: fitted.score_samples(trusted[:, :3]))

    odd = {
        "a constant column": np.column_stack([trusted, np.full(30, 0.1)]),
        "a column of zeros": np.column_stack([trusted, np.zeros(30)]),
        "duplicate columns": np.column_stack([trusted, trusted]),
        "fewer rows than columns": _rows(30)[:4],
        "one row": trusted[:1],
        "two rows": trusted[:2],
        "equal rows": np.repeat(trusted[:1], 30, axis=0),
        "float32": trusted.astype(np.float32),
        "integers": (trusted * 10).astype(np.int64),
        "very large numbers": trusted * 1e30,
        "very small numbers": trusted * 1e-30,
        "another unit per column": trusted * 10.0 ** np.arange(-6, 9, 3),
    }
    for case, rows in odd.items():
        _require_defined(f"trusted rows: {case}", spec, rows)
    if fitted.score_samples(trusted[:0]).shape != (0,):
        raise LawBroken("no rows have no scores", "shape (0,)", str(fitted.score_samples(trusted[:0]).shape))


REFERENCE_LAWS: tuple[Callable[[Any], None], ...] = (
    law_rows_stand_alone,
    law_higher_is_more_normal,
    law_contributions_sum_to_the_score,
    law_state_restores,
    law_same_seed_same_bits,
    law_spec_stays_unfitted,
    law_bad_rows_are_named,
)


def given(spec: Any, X: Any, seed: int = 0) -> dict[str, Any]:
    """Plausible keywords for the ``fit`` of a reference, those alone that its signature has.

    Args:
        spec: the reference.
        X: (n, d) trusted rows; a table that is none gets the keywords of 5 columns and no rows.
        seed: seed of the pool and of the classes.

    Returns:
        ``untrusted``: (n // 2 + 8, d) rows like the trusted ones, a fifth of them moved away. ``groups``: the first
        column is "output", the others belong to "layer 0", "layer 1" in turns of two. ``names``: (d,) texts.
        ``classes``: (n,) two predicted classes. A ``seed`` is left to the caller.
    """
    table = np.asarray(X) if isinstance(X, np.ndarray) else np.empty((0, 5))
    usable = table.ndim == 2 and table.dtype.kind in "fiu"
    n, d = table.shape if usable else (len(table) if table.ndim else 0, 5)
    draw = np.random.default_rng([seed, 17])
    pool = np.zeros((n // 2 + 8, d))
    if usable and n and np.isfinite(table).all():
        rows = table.astype(np.float64)
        pool = rows[draw.integers(n, size=len(pool))] + 0.1 * draw.normal(size=pool.shape) * rows.std(axis=0)
        pool[: len(pool) // 5] += 4 * rows.std(axis=0)
    known = {
        "untrusted": pool,
        "groups": tuple("output" if j == 0 else f"layer {(j - 1) // 2 % 2}" for j in range(d)),
        "names": tuple(f"column {j}" for j in range(d)),
        "classes": draw.permutation(np.arange(n) % 2),
    }
    taken = inspect.signature(spec.fit).parameters if hasattr(spec, "fit") else {}
    return {key: value for key, value in known.items() if key in taken}


def _fit(spec: Any, X: Any, seed: int = 0) -> Any:
    """The reference fitted on trusted rows, with whatever else its ``fit`` takes."""
    return fit_reference(spec, X, seed=seed, **given(spec, X))


def _rows(count: int, seed: int = 0) -> Array:
    """(count, 5) correlated rows of differing units."""
    draw = np.random.default_rng([seed, 99])
    mixing = np.random.default_rng(5).normal(size=(5, 5))
    rows: Array = draw.normal(size=(count, 5)) @ mixing + np.array([0.0, 1, -2, 5, 0])
    return rows


def _attributes(spec: Any) -> str:
    return f"{spec!r} {sorted(vars(spec))}"


def _require_named(case: str, run: Callable[[], object]) -> None:
    law = "bad rows give a named error"
    try:
        run()
    except CausalmadError:
        return
    except Exception as error:
        raise LawBroken(law, f"{case}: a CausalmadError", repr(error)) from error
    raise LawBroken(law, f"{case}: a CausalmadError", "no error")


def _require_defined(case: str, spec: Any, rows: npt.NDArray[Any]) -> None:
    law = "degenerate rows give finite scores or a named error"
    try:
        scores = _fit(spec, rows, seed=0).score_samples(np.concatenate([rows, rows[:1] * 3]))
    except CausalmadError:
        return
    except Exception as error:
        raise LawBroken(law, case, repr(error)) from error
    if scores.shape != (len(rows) + 1,) or not np.isfinite(scores).all():
        raise LawBroken(law, case, f"scores {scores[:3]} of shape {scores.shape}")


def _require_same_bits(law: str, what: str, a: Array, b: Array) -> None:
    if a.shape != b.shape or a.tobytes() != b.tobytes():
        raise LawBroken(law, f"the same bits: {what}", f"{a[:3]} and {b[:3]}")


def _require_close(law: str, what: str, a: Array, b: Array) -> None:
    if a.shape != b.shape or not np.allclose(a, b, rtol=1e-9, atol=1e-9 * float(np.abs(a).max(initial=1.0))):
        raise LawBroken(law, f"equal to nine digits: {what}", f"{a[:3]} and {b[:3]}")
