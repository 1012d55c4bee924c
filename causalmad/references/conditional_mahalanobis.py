"""Mahalanobis distance of what some columns do not explain of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt

from causalmad.config import require_options
from causalmad.errors import FitError, InputsError, SpecError, StoreError, nearest
from causalmad.references.base import as_rows
from causalmad.references.chunks import Passes, in_folds
from causalmad.references.covariance import Summary
from causalmad.references.mahalanobis import FittedMahalanobis, Mahalanobis
from causalmad.references.nested import checked, nested_state, split
from causalmad.references.state import frozen, restored

Array = npt.NDArray[np.float64]

_FOLDS = 5
_PENALTIES = tuple(10.0**power for power in range(-4, 4))  # per row, in units of standardised conditions


@dataclass(frozen=True)
class ConditionalMahalanobis:
    """Distance of the columns from what the condition columns predict of them.

    Columns whose group or name matches ``on`` are conditions c, all others are scored: the anomaly score is the
    Mahalanobis distance of the residual ``r = f - E[f | c]`` of a ridge regression. It sees a mechanism that does not
    fit this input's output (or whatever is conditioned on), where the distance of f alone sees an output that is rare.
    The conditions themselves are not scored: a row whose conditions alone are odd is scored by what follows from them.

    The covariance of the residuals, their mean and the two-sided width are those of rows that the regression has not
    seen (5 folds), since residuals of rows that it has seen are too small. The penalty of the ridge is the one of eight
    (1e-4 to 1e3 per trusted row, on standardised columns) with the least leave-one-out error.

    Args:
        on: name or group of the condition columns; a glob such as ``logit *`` matches several.
        residual: the reference of the residuals.

    References:
        Song, Wu, Jermaine, Ranka 2007, IEEE TKDE 19 (conditional anomaly detection). Hoerl, Kennard 1970 (ridge).
    """

    on: str = "output"
    residual: Mahalanobis = field(default_factory=Mahalanobis)

    def __post_init__(self) -> None:
        require_options(self)
        if not isinstance(self.residual, Mahalanobis):
            raise SpecError(
                f"residual={self.residual!r}",
                needed="a Mahalanobis",
                tries=['ConditionalMahalanobis(residual=Mahalanobis("oas"))'],
            )

    def fit(
        self,
        X: npt.ArrayLike,
        *,
        groups: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        seed: int = 0,
    ) -> FittedConditionalMahalanobis:
        """The fit on trusted rows.

        Args:
            X: (n, d) trusted rows, n at least 3.
            groups: (d,) group of each column.
            names: (d,) name of each column.
            seed: for the reference of the residuals, where it draws.

        Raises:
            FitError: where ``X`` is no table of finite numbers or has too few rows, or no column, or every one, is a
                condition.
        """
        from sklearn.linear_model import Ridge, RidgeCV

        rows = as_rows(X, what="trusted rows")
        n, d = rows.shape
        conditions = self._conditions(checked(groups, d, "groups"), checked(names, d, "names"), d)
        if n < 3:
            raise FitError(f"got {n} trusted row{'s' * (n != 1)}", needed=f"at least 3 rows, and better {10 * d}")
        table = Summary.of(Passes(X if isinstance(X, np.ndarray) else rows))
        unit = (rows - table.moments.mean) / table.scale
        unit[:, table.constant] = 0.0  # rounding, which a ridge would take for a signal
        c, f = unit[:, conditions], unit[:, ~conditions]
        ridge = RidgeCV(alphas=[n * penalty for penalty in _PENALTIES]).fit(c, f)
        slopes = np.ascontiguousarray(ridge.coef_.reshape(f.shape[1], c.shape[1]))
        residuals = np.empty_like(f)
        _, fold = next(in_folds([rows], n, _FOLDS))
        for k in range(_FOLDS):
            held = fold == k
            if held.any():
                part = Ridge(alpha=ridge.alpha_).fit(c[~held], f[~held])
                residuals[held] = f[held] - part.predict(c[held]).reshape(-1, f.shape[1])
        # Back to the columns' own units, in which a constant column is known as one.
        own = residuals * table.scale[~conditions] + table.moments.mean[~conditions]
        flat = table.constant[~conditions]
        own[:, flat] = table.moments.mean[~conditions][flat]
        inner = self.residual.fit(own, seed=seed)
        return FittedConditionalMahalanobis(conditions, table.moments.mean, table.scale, slopes, inner)

    def _conditions(self, groups: tuple[str, ...], names: tuple[str, ...], d: int) -> npt.NDArray[np.bool_]:
        if not groups and not names:
            raise FitError(
                f"ConditionalMahalanobis(on={self.on!r}) got neither groups nor names of the columns",
                needed="the group or the name of each column, to find the conditions by",
                tries=[
                    "Detector(signature, ConditionalMahalanobis(...))",
                    "fit(X, groups=[...])",
                    "fit(X, names=[...])",
                ],
            )
        matches = np.zeros(d, dtype=np.bool_)
        for texts in (groups, names):
            if texts:
                matches |= np.array([text == self.on or fnmatchcase(text, self.on) for text in texts])
        if not matches.any():
            close = nearest(self.on, [*groups, *names])
            raise FitError(
                f"no column has a group or a name that matches on={self.on!r}",
                needed="condition columns",
                causes=["a signature without such columns"],
                tries=[f"ConditionalMahalanobis(on={text!r})" for text in close],
            )
        if matches.all():
            raise FitError(
                f"all {d} columns match on={self.on!r}, and none is left to score",
                needed="a pattern of some of the columns",
                tries=["causalmad.references.Mahalanobis()"],
            )
        return matches

    def restore(self, state: Mapping[str, Array]) -> FittedConditionalMahalanobis:
        """The fit that ``state`` was taken from, with the same scores to the last bit.

        Raises:
            StoreError: where an array is missing, or has another shape or broken numbers.
        """
        own, inside = split(state, "residual")
        shapes = {"conditions": ("d",), "mean": ("d",), "scale": ("d",), "slopes": ("f", "c")}
        kept = restored(self, own, shapes, positive=("scale",))
        conditions = kept["conditions"].astype(np.bool_)
        inner = self.residual.restore(inside)
        scored = int((~conditions).sum())
        if kept["slopes"].shape != (scored, len(conditions) - scored) or len(inner.spread.mean) != scored:
            raise StoreError("the arrays of a ConditionalMahalanobis do not fit each other", needed="one saved fit")
        return FittedConditionalMahalanobis(conditions, kept["mean"], kept["scale"], kept["slopes"], inner)


@dataclass(frozen=True, eq=False)
class FittedConditionalMahalanobis:
    """Distances of residuals from a trusted fit.

    Args:
        conditions: (d,) which columns are conditions.
        mean: (d,) trusted mean.
        scale: (d,) trusted unit.
        slopes: (scored, conditions) of the ridge, in standardised columns.
        residual: fitted on residuals, in the columns' own units and around the columns' mean.
    """

    conditions: npt.NDArray[np.bool_]
    mean: Array
    scale: Array
    slopes: Array
    residual: FittedMahalanobis

    def __post_init__(self) -> None:
        frozen(self.conditions, self.mean, self.scale, self.slopes)

    def score_samples(self, X: npt.ArrayLike) -> Array:
        """Normality (n,) of the rows of ``X`` (n, d): higher = more normal.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        return self.residual.score_samples(self._residuals(X))

    def contributions(self, X: npt.ArrayLike) -> Array:
        """Contributions (n, d) that sum over columns to the anomaly score; those of the conditions are 0.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        own = self._residuals(X)
        found = np.zeros((len(own), len(self.conditions)))
        found[:, ~self.conditions] = self.residual.contributions(own)
        return found

    def state(self) -> dict[str, Array]:
        """Arrays that `ConditionalMahalanobis.restore` takes."""
        own = {"mean": self.mean, "scale": self.scale, "slopes": self.slopes}
        return {"conditions": self.conditions.astype(np.float64), **own, **nested_state("residual", self.residual)}

    def _residuals(self, X: npt.ArrayLike) -> Array:
        rows = as_rows(X, what="rows to score", columns=len(self.conditions), error=InputsError)
        c, scored = self.conditions, ~self.conditions
        with np.errstate(over="ignore"):
            unit = np.clip((rows[:, c] - self.mean[c]) / self.scale[c], -1e100, 1e100)
        # One product per row: its last bits must not depend on the rows that come with it.
        expected = np.matmul(self.slopes, unit[:, :, None])[:, :, 0] * self.scale[scored]
        found: Array = np.clip(rows[:, scored] - expected, -1e300, 1e300)
        return found
