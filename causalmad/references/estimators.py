"""References of any kind fitted in one way: the library's own, and scikit-learn's outlier estimators as they are."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from causalmad.errors import FitError, InputsError, SpecError, StoreError
from causalmad.references.base import FittedReference, as_rows

Array = npt.NDArray[np.float64]

WORKING = (
    "sklearn.ensemble.IsolationForest()",
    "sklearn.neighbors.LocalOutlierFactor(novelty=True)",
    "sklearn.neighbors.KernelDensity()",
    "sklearn.mixture.GaussianMixture()",
    "sklearn.svm.OneClassSVM()",
    "causalmad.references.Mahalanobis()",
)

_KEYWORDS = ("untrusted", "groups", "names", "classes")


@dataclass(frozen=True, eq=False)
class FittedEstimator:
    """A fitted scikit-learn estimator, with its scores checked.

    Args:
        estimator: what the ``fit`` of the (copied) estimator returned.
        columns: columns it was fitted on.
    """

    estimator: Any
    columns: int

    def score_samples(self, X: npt.ArrayLike) -> Array:
        """Normality (n,) of the rows of ``X`` (n, d): higher = more normal, as the estimator scores them.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns, or the estimator
                gives no number for a row.
        """
        rows = as_rows(X, what="rows to score", columns=self.columns, error=InputsError)
        if not len(rows):  # most estimators refuse an empty table
            return np.empty(0)
        scores = np.asarray(self.estimator.score_samples(rows), dtype=np.float64)
        if scores.shape != (len(rows),) or np.isnan(scores).any():
            raise InputsError(
                f"{type(self.estimator).__name__}.score_samples gave shape {scores.shape}, "
                f"{int(np.isnan(scores).sum())} of them NaN, for {len(rows)} rows",
                needed="one number for each row",
            )
        return scores

    def state(self) -> NoReturn:
        """There is none: the objects inside an estimator are code, which no file may hold.

        Raises:
            StoreError: always; a saved detector keeps the rows, and fits the estimator again when it is loaded.
        """
        raise StoreError(
            f"a fitted {type(self.estimator).__name__} has no arrays to write: it is fitted again on load",
            needed="the trusted rows and the seed, from which fit_reference makes it again",
        )


def asks(reference: object) -> frozenset[str]:
    """Names of what the ``fit`` of a reference takes beside the trusted rows; scikit-learn's estimators take nothing.

    A parameter is known by its name alone: ``seed``, ``untrusted``, ``groups``, ``names``, ``classes``.
    """
    if _is_estimator(reference) or not hasattr(reference, "fit"):
        return frozenset()
    return frozenset(inspect.signature(reference.fit).parameters) & {"seed", *_KEYWORDS}


def compares(reference: object) -> bool:
    """Whether a reference, or the one inside it, looks at untrusted rows."""
    inner = getattr(reference, "reference", None)
    return "untrusted" in asks(reference) and (inner is None or compares(inner))


def require_untrusted(reference: object, untrusted: object | None) -> None:
    """Nothing, where a reference has what it compares with.

    Raises:
        FitError: where its ``fit`` cannot do without ``untrusted``, and there is none.
    """
    if untrusted is not None or "untrusted" not in asks(reference):
        return
    if inspect.signature(reference.fit).parameters["untrusted"].default is inspect.Parameter.empty:  # type: ignore[attr-defined]
        raise FitError(
            f"{type(reference).__name__} compares with untrusted inputs, and there are none",
            needed="unlabelled inputs, some of which may be anomalous",
            tries=[
                "detector.fit(model, trusted, untrusted)",
                "--untrusted FILE.jsonl",
                "causalmad.references.Mahalanobis()",
            ],
        )


def fit_reference(
    reference: object,
    X: npt.ArrayLike,
    *,
    seed: int = 0,
    untrusted: npt.ArrayLike | None = None,
    groups: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    classes: npt.ArrayLike | None = None,
) -> FittedReference:
    """The reference fitted on trusted rows; the object that was passed stays as it was.

    A scikit-learn estimator is cloned, so that nothing from an earlier fit remains, and any ``random_state`` in it
    (also of nested estimators) that is None is set from ``seed``. Anything else with ``fit`` is deep-copied, and gets
    those of the keywords below that its ``fit`` names (``seed`` as well). What ``fit`` returns is what scores.

    Args:
        reference: a reference of this library, a plug-in, or a scikit-learn outlier estimator with ``score_samples``.
        X: (n, d) trusted rows.
        seed: seed for estimators that draw.
        untrusted: (m, d) unlabelled rows, for references that compare with them.
        groups: (d,) the block of every column.
        names: (d,) the name of every column.
        classes: (n,) the class that the model predicted for every row.

    Raises:
        SpecError: where ``reference`` is a class, or cannot fit or score.
        FitError: where ``X`` is no table of finite numbers, the estimator cannot be fitted on it, or the reference
            cannot do without ``untrusted``.
    """
    if isinstance(reference, type):
        raise SpecError(f"got the class {reference.__name__}", needed="an object", tries=[f"{reference.__name__}()"])
    is_estimator = _is_estimator(reference)
    if not hasattr(reference, "fit") or (is_estimator and not hasattr(reference, "score_samples")):
        raise _cannot_score(reference)
    if not is_estimator:
        require_untrusted(reference, untrusted)
        known = {"seed": seed, "untrusted": untrusted, "groups": groups, "names": names, "classes": classes}
        given = {key: known[key] for key in sorted(asks(reference)) if known[key] is not None}
        fitted: FittedReference = copy.deepcopy(reference).fit(X, **given)
        if not hasattr(fitted, "score_samples"):
            raise _cannot_score(reference)
        return fitted

    from sklearn.base import clone

    rows = as_rows(X, what="trusted rows")
    name = type(reference).__name__
    estimator: Any = clone(reference)
    open_seeds = [
        key
        for key, value in sorted(estimator.get_params(deep=True).items())
        if value is None and key.rsplit("__", 1)[-1] == "random_state"
    ]
    draws = np.random.default_rng(seed).integers(2**31 - 1, size=len(open_seeds) + 1)
    estimator.set_params(**{key: int(draw) for key, draw in zip(open_seeds, draws)})
    try:
        with _global_numbers_kept(int(draws[-1])):
            result = estimator.fit(rows)
    except (ValueError, np.linalg.LinAlgError) as cause:
        raise FitError(
            f"{name} could not be fitted on {rows.shape[0]} trusted rows of {rows.shape[1]} columns: {cause}",
            causes=["too few trusted rows", "constant or duplicate columns"],
            tries=["causalmad.references.Mahalanobis(), which takes any two rows or more"],
        ) from cause
    if not hasattr(result, "score_samples"):
        raise _cannot_score(reference)
    return FittedEstimator(result, rows.shape[1])


def _is_estimator(reference: object) -> bool:
    return hasattr(reference, "get_params") and hasattr(reference, "set_params")


@contextmanager
def _global_numbers_kept(seed: int) -> Iterator[None]:
    """Numpy's global generator seeded inside and as it was outside: OneClassSVM draws from it and has no option."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _cannot_score(reference: object) -> SpecError:
    """The error for an object that cannot be a reference, with those that can."""
    name = type(reference).__name__
    novelty = name == "LocalOutlierFactor"
    return SpecError(
        f"{name} has no score_samples" + (" without novelty=True" if novelty else ""),
        needed="an object whose fit(X) gives score_samples(X), one number for each row, higher = more normal",
        causes=["it is a supervised or clustering estimator"] if not novelty else [],
        tries=list(WORKING[1:2] if novelty else WORKING),
    )
