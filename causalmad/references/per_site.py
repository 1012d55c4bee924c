"""A reference for each site's columns, and their scores on one scale combined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from causalmad.config import require_options
from causalmad.errors import FitError, InputsError, SpecError, StoreError, nearest
from causalmad.references.base import FittedReference, Reference, anomaly_scores, as_rows
from causalmad.references.chunks import in_folds
from causalmad.references.estimators import fit_reference
from causalmad.references.mahalanobis import Mahalanobis
from causalmad.references.nested import checked, nested_state, restored_inside, split
from causalmad.references.state import frozen, restored

Array = npt.NDArray[np.float64]

COMBINATIONS = ("mean", "max", "cauchy", "harmonic", "fisher", "stouffer")

_FOLDS = 5
_END = "\0"  # of a site's name in a saved fit


@dataclass(frozen=True)
class PerSite:
    """A reference for the columns of each site (group of columns), combined so that no site is louder than another.

    The inner reference is fitted on each group's columns alone. What is usual for a site's score is measured on trusted
    rows that the fit has not seen (5 folds), so that a site of many columns, which fits its trusted rows closely, gets
    no larger scores on new rows than the others. With z_g a site's score less the mean, over the standard deviation, of
    these K sites' trusted scores, and p_g the share of trusted scores at least as large, ``(1 + count) / (n + 1)`` kept
    in [1/(n+1), n/(n+1)], the anomaly score is

    - "mean": the mean of z_g. "max": the largest z_g.
    - "cauchy": the mean of ``tan((1/2 - p_g) pi)``; "harmonic": the mean of ``1 / p_g``. Both are led by the smallest
      p-values, and hold up when sites depend on each other.
    - "fisher": ``-2 sum log p_g``.
    - "stouffer": ``sum q_g / sqrt(1^T R 1)`` with q_g the normal quantile of 1 - p_g, and R their correlation matrix
      over trusted rows.

    The result is a score as any other: a calibrator makes the p-value. The p-value of a site cannot be below 1/(n+1),
    so that "mean" and "max" tell very odd rows apart where the others do not.

    Args:
        reference: fitted on each site: a part of this library, or a scikit-learn outlier estimator.
        combine: "mean", "max", "cauchy", "harmonic", "fisher" or "stouffer".
        each: what is fitted by itself: every "site", or every "part" of a `Concat` with all of its sites together (the
            text of a group before its first ": "; without one, a site is a part).

    References:
        Liu, Xie 2020, J. American Statistical Association 115 (Cauchy). Wilson 2019, PNAS 116 (harmonic mean). Fisher
        1932. Stouffer et al. 1949.
    """

    reference: Reference = field(default_factory=Mahalanobis)
    combine: str = "mean"
    each: Literal["site", "part"] = "site"

    def __post_init__(self) -> None:
        require_options(self)
        if self.each not in ("site", "part"):
            raise SpecError(f"each={self.each!r}", needed="'site' or 'part'")
        if self.combine not in COMBINATIONS:
            raise SpecError(
                f"combine={self.combine!r} is unknown",
                needed=", ".join(COMBINATIONS),
                tries=[f"combine={name!r}" for name in nearest(str(self.combine), COMBINATIONS)],
            )

    def _parts(self, groups: Sequence[str]) -> Sequence[str]:
        return [str(group).partition(": ")[0] for group in groups] if self.each == "part" else groups

    def fit(
        self,
        X: npt.ArrayLike,
        *,
        groups: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        classes: npt.ArrayLike | None = None,
        untrusted: npt.ArrayLike | None = None,
        seed: int = 0,
    ) -> FittedPerSite:
        """The fit on trusted rows.

        Args:
            X: (n, d) trusted rows, n at least 3.
            groups: (d,) site of each column.
            names: (d,) name of each column, passed on.
            classes: (n,) predicted class of each row, passed on.
            untrusted: (m, d) unlabelled rows, for a reference that takes them.
            seed: seed of the references.

        Raises:
            FitError: where ``X`` is no table of finite numbers or has too few rows, there are no groups, or the
                reference cannot be fitted on four fifths of the rows.
        """
        rows = as_rows(X, what="trusted rows")
        n, d = rows.shape
        if groups is None:
            raise FitError(
                "PerSite got no groups of columns",
                needed="the site of each column",
                tries=["Detector(signature, PerSite(...))", "PerSite().fit(X, groups=[...])"],
            )
        own, known = checked(self._parts(groups), d, "groups"), checked(names, d, "names")
        if n < 3:
            raise FitError(f"got {n} trusted row{'s' * (n != 1)}", needed=f"at least 3 rows, and better {10 * d}")
        table = np.asarray(X)  # as it came: its resolution says what is rounding
        labels = None if classes is None else np.asarray(classes)
        if labels is not None and labels.shape != (n,):
            raise FitError(f"the classes have shape {labels.shape}", needed=f"({n},)")
        pool = None
        if untrusted is not None:
            as_rows(untrusted, what="untrusted rows", columns=d)
            pool = np.asarray(untrusted)
        sites = tuple(dict.fromkeys(own))
        site = np.array([sites.index(group) for group in own])
        _, fold = next(in_folds([rows], n, _FOLDS))

        def fitted(k: int, kept: npt.NDArray[np.bool_]) -> FittedReference:
            columns = np.flatnonzero(site == k)
            return fit_reference(
                self.reference,
                table[np.ix_(kept, columns)],
                seed=seed,
                untrusted=None if pool is None else pool[:, columns],
                groups=[own[j] for j in columns],
                names=[known[j] for j in columns] if known else None,
                classes=None if labels is None else labels[kept],
            )

        unseen = np.empty((n, len(sites)))
        for k in range(len(sites)):
            for part in range(_FOLDS):
                held = fold == part
                if held.any():
                    unseen[held, k] = anomaly_scores(fitted(k, ~held).score_samples, rows[held][:, site == k])
        members = tuple(fitted(k, np.ones(n, dtype=np.bool_)) for k in range(len(sites)))
        centre, deviation = unseen.mean(axis=0), unseen.std(axis=0)
        width = np.where(deviation > 1e-12 * np.maximum(np.abs(centre), 1e-300), deviation, 1.0)
        return FittedPerSite(sites, site, members, centre, width, np.sort(unseen, axis=0), self.combine, _load(unseen))

    def restore(self, state: Mapping[str, npt.ArrayLike]) -> FittedPerSite:
        """The fit that ``state`` was taken from, with the same scores to the last bit.

        Raises:
            StoreError: where an array is missing, or has another shape or broken numbers, or the reference inside
                cannot be restored.
        """
        rest = {key: np.asarray(value) for key, value in state.items()}
        own = {key: value for key, value in rest.items() if ":" not in key}
        shapes = {
            "site": ("d",),
            "names": ("t",),
            "centre": ("g",),
            "width": ("g",),
            "unseen": ("n", "g"),
            "load": (1,),
        }
        kept = restored(self, own, shapes, positive=("width", "load"))
        try:
            sites = tuple(kept["names"].astype(np.uint8).tobytes().decode().split(_END)[:-1])
        except UnicodeDecodeError as error:
            raise StoreError(f"the names of the sites are no text: {error}") from error
        site = kept["site"].astype(np.int64)
        if set(site.tolist()) != set(range(len(sites))) or len(kept["centre"]) != len(sites):
            raise StoreError("the arrays of a PerSite do not fit each other", needed="one saved fit")
        members = tuple(restored_inside(self.reference, split(rest, str(k))[1]) for k in range(len(sites)))
        load = float(kept["load"][0])
        return FittedPerSite(sites, site, members, kept["centre"], kept["width"], kept["unseen"], self.combine, load)


@dataclass(frozen=True, eq=False)
class FittedPerSite:
    """Fitted references of sites.

    Args:
        sites: names of the g sites.
        site: (d,) place of each column's site in ``sites``.
        members: the fitted reference of each site.
        centre: (g,) mean of the sites' anomaly scores of trusted rows that their fit has not seen.
        width: (g,) standard deviation of these.
        unseen: (n, g) these scores, each column sorted.
        combine: how the sites' scores are combined.
        load: ``sqrt(1^T R 1)``, for "stouffer".
    """

    sites: tuple[str, ...]
    site: npt.NDArray[np.int64]
    members: tuple[FittedReference, ...]
    centre: Array
    width: Array
    unseen: Array
    combine: str
    load: float

    def __post_init__(self) -> None:
        frozen(self.site, self.centre, self.width, self.unseen)

    def score_samples(self, X: npt.ArrayLike) -> Array:
        """Normality (n,) of the rows of ``X`` (n, d): higher = more normal.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        scores: Array = -self._terms(self._raw(self._rows(X))).sum(axis=1)
        return scores

    def site_scores(self, X: npt.ArrayLike) -> Array:
        """Anomaly score (n, g) of each site, in standard deviations over the trusted rows.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        found: Array = (self._raw(self._rows(X)) - self.centre) / self.width
        return found

    def site_p_values(self, X: npt.ArrayLike) -> Array:
        """p-value (n, g) of each site against the trusted rows, in [1/(n+1), n/(n+1)].

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        return _p_values(self._raw(self._rows(X)), self.unseen)

    def contributions(self, X: npt.ArrayLike) -> Array:
        """Contributions (n, d) that sum over columns to the anomaly score, and over a site's columns to its term.

        "mean": the inner reference's contributions over the site's standard deviation and the number of sites, with the
        site's mean taken off evenly. Otherwise a site's term is shared out by the size of the inner reference's
        contributions. An inner reference that has none shares evenly.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        rows = self._rows(X)
        terms = self._terms(self._raw(rows))
        found = np.empty_like(rows)
        for k, member in enumerate(self.members):
            columns = self.site == k
            count = int(columns.sum())
            if not hasattr(member, "contributions"):
                found[:, columns] = terms[:, k : k + 1] / count
                continue
            parts = np.asarray(member.contributions(rows[:, columns]), dtype=np.float64)
            if self.combine == "mean":
                found[:, columns] = (parts - self.centre[k] / count) / self.width[k] / len(self.members)
                continue
            size = np.abs(parts)
            total = size.sum(axis=1, keepdims=True)
            shares = np.divide(size, total, out=np.full_like(size, 1 / count), where=total > 0)
            found[:, columns] = shares * terms[:, k : k + 1]
        return found

    def state(self) -> dict[str, Array]:
        """Arrays that `PerSite.restore` takes.

        Raises:
            StoreError: where the reference inside has none, as scikit-learn's estimators.
        """
        text = np.frombuffer("".join(f"{site}{_END}" for site in self.sites).encode(), dtype=np.uint8).astype(
            np.float64
        )
        kept = {"site": self.site.astype(np.float64), "names": text, "centre": self.centre, "width": self.width}
        kept |= {"unseen": self.unseen, "load": np.array([self.load])}
        for k, member in enumerate(self.members):
            kept |= nested_state(str(k), member)
        return kept

    def _rows(self, X: npt.ArrayLike) -> Array:
        return as_rows(X, what="rows to score", columns=len(self.site), error=InputsError)

    def _raw(self, rows: Array) -> Array:
        """Anomaly score (n, g) of each site in its own unit."""
        scores = [anomaly_scores(one.score_samples, rows[:, self.site == k]) for k, one in enumerate(self.members)]
        return np.stack(scores, axis=1)

    def _terms(self, raw: Array) -> Array:
        """Each site's term (n, g) of the score."""
        count = len(self.members)
        z = (raw - self.centre) / self.width
        if self.combine == "mean":
            return np.asarray(z / count)
        if self.combine == "max":
            return np.asarray(np.where(np.arange(count) == z.argmax(axis=1)[:, None], z, 0.0))
        p = _p_values(raw, self.unseen)
        if self.combine == "cauchy":
            return np.asarray(1 / np.tan(np.pi * p) / count)  # tan((1/2 - p) pi), which loses no digits for a small p
        if self.combine == "harmonic":
            return np.asarray(1 / p / count)
        if self.combine == "fisher":
            return np.asarray(-2 * np.log(p))
        return _quantiles(p) / self.load


def _p_values(raw: Array, unseen: Array) -> Array:
    """Share (n, g) of the trusted scores (m, g), each column sorted, that are at least as large."""
    m = len(unseen)
    below = [np.searchsorted(unseen[:, k], raw[:, k], side="left") for k in range(raw.shape[1])]
    found: Array = np.clip((1 + m - np.stack(below, axis=1)) / (m + 1), 1 / (m + 1), m / (m + 1))
    return found


def _quantiles(p: Array) -> Array:
    from scipy.special import ndtri

    found: Array = -ndtri(p)
    return found


def _load(unseen: Array) -> float:
    """``sqrt(1^T R 1)`` of the normal quantiles of the trusted rows' own p-values, over the sites that vary."""
    q = _quantiles(_p_values(unseen, np.sort(unseen, axis=0)))
    varying = q.std(axis=0) > 0
    correlation = np.eye(q.shape[1])
    if varying.sum() > 1:
        correlation[np.ix_(varying, varying)] = np.corrcoef(q[:, varying].T)
    return float(np.sqrt(max(correlation.sum(), 1e-6)))
