"""Cross-fitted logistic regression of untrusted against trusted rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from causalmad.config import require_options
from causalmad.errors import FitError, InputsError, SpecError, StoreError
from causalmad.references.base import as_rows, resolution
from causalmad.references.covariance import Spread
from causalmad.references.pool import trusted_and_pool
from causalmad.references.state import frozen, restored
from causalmad.references.whitening import spread_of

Array = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

_DIGEST = 16  # bytes


@dataclass(frozen=True)
class TrustedVersusUntrusted:
    """Log-odds that a row is from the untrusted pool rather than the trusted rows (offline).

    A logistic regression that tells the pool from the trusted rows has to use what only anomalous rows have, where that
    is the one difference; a benign shift of the pool is learnt as well. The rows are divided into ``folds`` parts, and
    each of as many models is fitted without one part, with balanced classes and a strong L2 penalty, on columns in the
    units of its own rows. The anomaly score is the mean log-odds of the models for a new row; a row whose very numbers
    are among the trusted or untrusted rows is scored by the one model that has not seen it, since a model's odds for
    its own training rows say little. Equal rows are in one part.

    Args:
        folds: parts; fewer where there are fewer distinct rows.
        strength: inverse weight of the L2 penalty, scikit-learn's ``C``.

    References:
        Lopez-Paz, Oquab 2017, arXiv 1610.06545 (classifier two-sample tests).
    """

    folds: int = 5
    strength: float = 0.01

    def __post_init__(self) -> None:
        require_options(self)
        if self.folds < 2:
            raise SpecError(f"folds={self.folds!r}", needed="a whole number of at least 2")
        if not 0 < self.strength < np.inf:
            raise SpecError(f"strength={self.strength!r}", needed="a number above 0", tries=["strength=0.01"])

    def fit(self, X: npt.ArrayLike, *, untrusted: npt.ArrayLike | None = None, seed: int = 0) -> FittedVersus:
        """The fit on trusted rows ``X`` (n, d) and unlabelled ``untrusted`` rows (m, d); ``seed`` divides them.

        Raises:
            FitError: where there are no untrusted rows, or either is no table of finite numbers, or there are not two
                distinct rows of each.
        """
        from sklearn.linear_model import LogisticRegression

        rows, pool = trusted_and_pool(X, untrusted, self)
        both = np.concatenate([rows, pool])
        theirs = np.arange(len(both)) >= len(rows)
        contents = _digests(both)
        parts = _parts(contents, theirs, self.folds, seed)
        digests, first = np.unique(contents, return_index=True)
        mean, scale, weights, bias = [], [], [], []
        for part in range(int(parts.max()) + 1):
            seen = parts != part
            units, _ = spread_of(both[seen], resolution(X))
            model = LogisticRegression(C=self.strength, class_weight="balanced", max_iter=1000)
            model.fit(units.standardised(both[seen]), theirs[seen])
            mean.append(units.mean)
            scale.append(units.scale)
            weights.append(model.coef_[0])
            bias.append(model.intercept_[0])
        kept = np.frombuffer(b"".join(digests.tolist()), dtype=np.uint8).reshape(-1, _DIGEST).copy()
        return FittedVersus(
            np.stack(mean), np.stack(scale), np.stack(weights), np.array(bias), kept, parts[first].astype(np.int64)
        )

    def restore(self, state: Mapping[str, npt.ArrayLike]) -> FittedVersus:
        """The fit that ``state`` was taken from, with the same scores to the last bit.

        Raises:
            StoreError: where an array is missing, or has another shape or broken numbers.
        """
        shapes = {
            "mean": ("m", "d"), "scale": ("m", "d"), "weights": ("m", "d"), "bias": ("m",),
            "digests": ("n", _DIGEST), "parts": ("n",),
        }  # fmt: skip
        kept = restored(self, state, shapes, positive=("scale",))
        digests, parts = kept["digests"].astype(np.uint8), kept["parts"].astype(np.int64)
        if not (digests == kept["digests"]).all() or parts.min() < 0 or parts.max() >= len(kept["mean"]):
            raise StoreError("digests or parts hold numbers out of range", needed="bytes, and numbers of models")
        return FittedVersus(kept["mean"], kept["scale"], kept["weights"], kept["bias"], digests, parts)


@dataclass(frozen=True, eq=False)
class FittedVersus:
    """Logistic regressions, each fitted without one part of the rows.

    Args:
        mean: (m, d) mean of the rows of each model.
        scale: (m, d) units of each model.
        weights: (m, d) slopes of the log-odds of "untrusted".
        bias: (m,) log-odds at the mean.
        digests: (n, 16) contents of the distinct rows of the fit.
        parts: (n,) the model that has not seen each.
    """

    mean: Array
    scale: Array
    weights: Array
    bias: Array
    digests: Bytes
    parts: Ints

    def __post_init__(self) -> None:
        frozen(self.mean, self.scale, self.weights, self.bias, self.digests, self.parts)

    def score_samples(self, X: npt.ArrayLike) -> Array:
        """Normality (n,) of the rows of ``X`` (n, d): log-odds of "trusted".

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        scores: Array = -self.contributions(X).sum(axis=1)
        return scores

    def contributions(self, X: npt.ArrayLike) -> Array:
        """Slope times departure from the mean (n, d), over the models that score the row, with the bias spread evenly.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        rows = as_rows(X, what="rows to score", columns=self.mean.shape[1], error=InputsError)
        models, d = self.mean.shape
        shares = np.full((len(rows), models), 1 / models)
        for row, content in enumerate(_digests(rows).tolist()):
            if content in self._unseen_by:
                shares[row] = np.arange(models) == self._unseen_by[content]
        parts = np.zeros_like(rows)
        for model in range(models):
            units = Spread(self.mean[model], self.scale[model], np.ones(d), 0.0)
            odds = units.standardised(rows) * self.weights[model] + self.bias[model] / d
            parts += shares[:, model, None] * odds
        return parts

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Arrays that `TrustedVersusUntrusted.restore` takes."""
        return {
            "mean": self.mean,
            "scale": self.scale,
            "weights": self.weights,
            "bias": self.bias,
            "digests": self.digests,
            "parts": self.parts,
        }

    @cached_property
    def _unseen_by(self) -> dict[bytes, int]:
        return {digest.tobytes(): int(part) for digest, part in zip(self.digests, self.parts)}


def _digests(rows: Array) -> npt.NDArray[np.object_]:
    """A digest (n,) of the numbers of each row; 0 and -0 are one number."""
    same = rows + 0.0
    found = np.empty(len(rows), dtype=object)
    found[:] = [hashlib.blake2b(row.tobytes(), digest_size=_DIGEST).digest() for row in same]
    return found


def _parts(contents: npt.NDArray[np.object_], theirs: npt.NDArray[np.bool_], folds: int, seed: int) -> Ints:
    """The part (n,) of each row: equal contents in one part, every part with trusted and with untrusted rows."""
    ours = np.unique(contents[~theirs])
    others = np.setdiff1d(np.unique(contents[theirs]), ours)
    if len(ours) < 2 or len(others) < 2:
        raise FitError(
            f"got {len(ours)} distinct trusted rows and {len(others)} distinct untrusted rows that are not among them",
            needed="at least 2 of each",
            causes=["the untrusted rows are the trusted rows"],
        )
    draw = np.random.default_rng([seed, 73])
    part: dict[bytes, int] = {}
    for group in (ours, others):
        count = min(folds, len(ours), len(others))
        part |= {content: place % count for place, content in enumerate(draw.permutation(group).tolist())}
    return np.array([part[content] for content in contents.tolist()])
