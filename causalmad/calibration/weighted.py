"""Weighted conformal p-values: for inputs that differ from the trusted ones in something that does not matter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.calibration.base import as_alpha, as_covariate, as_label, as_scores, from_text, to_text
from causalmad.config import require_options
from causalmad.errors import CalibrationError, SpecError, StoreError

Array = npt.NDArray[np.float64]

_WIDEST = 30.0  # log weights beyond this are all the same: no calibration input is there


@dataclass(frozen=True)
class Weighted:
    """Weighted conformal p-values, for inputs whose length or other covariates are distributed otherwise.

    With w the ratio of densities of the covariates among untrusted and calibration inputs,
    ``p(x) = (w(x) + sum of w_i over calibration scores >= score) / (w(x) + sum of all w_i)``: valid where normal inputs
    differ from the trusted ones in these covariates alone. w is estimated by a logistic regression of untrusted against
    calibration inputs on ``by``, fitted once, on the untrusted inputs given to ``Detector.fit``.

    ``by`` must be nuisance: what may differ for innocent reasons (length, difficulty, source). With anything that tells
    of the mechanism, or of the anomaly itself, the anomalies' own weight would explain them away.

    A new input of a category that no calibration input has is an error that names the category, as it is for
    :class:`Mondrian`: its weight is infinite, and nothing there is to compare it with. Untrusted inputs of such a
    category play no part in the weights, which are ratios among the categories that there are.

    The weights are estimated, so that the p-values are as good as these; :attr:`FittedWeighted.effective_size` says how
    many calibration inputs are left in effect. They are not positively dependent: for many inputs at once take
    ``fdr="e-bh"`` or ``"by"``.

    Args:
        by: names of the covariates: ``length``, ``class``, or columns of the inputs. Numbers enter as they are, text
            and ``class`` as categories.

    References:
        Tibshirani, Barber, Candes, Ramdas 2019, arXiv 1904.06019. Jin, Candes 2023 (weighted conformal selection).
    """

    by: tuple[str, ...] = ("length",)

    def __post_init__(self) -> None:
        require_options(self)
        if not isinstance(self.by, tuple) or not self.by:
            raise SpecError(f"by={self.by!r}", needed="a tuple of names, at least one", tries=["by=('length',)"])

    @property
    def asks(self) -> tuple[str, ...]:
        """Names of the covariates that it needs."""
        return tuple(self.by)

    def fit(
        self,
        scores: npt.ArrayLike,
        *,
        covariates: Mapping[str, npt.ArrayLike],
        untrusted: Mapping[str, npt.ArrayLike],
    ) -> FittedWeighted:
        """The fit on anomaly scores (n,) of held-out trusted inputs; higher = more anomalous.

        Args:
            scores: (n,) scores.
            covariates: name -> (n,) covariates of the same inputs.
            untrusted: name -> (m,) covariates of the inputs to come, unlabelled.

        Raises:
            CalibrationError: where there are no scores, some are NaN, a covariate is missing or has gaps, or all
                untrusted inputs are of categories that no calibration input has.
        """
        values = as_scores(scores, what="calibration scores")
        count = len(np.asarray(next(iter(untrusted.values()), ())))
        if not len(values) or not count:
            raise CalibrationError(
                f"got {len(values)} calibration scores and {count} untrusted inputs", needed="at least one of each"
            )
        coder = _Coder.fit(self.by, covariates, len(values))
        unknown = coder.unknown(untrusted, count)
        if len(set().union(*unknown.values())) == count:
            raise coder.error(unknown, count, "untrusted inputs")
        known = np.setdiff1d(np.arange(count), sorted(set().union(*unknown.values())))
        table = coder(covariates, len(values))
        ratio = _log_ratio(table, coder(untrusted, count)[known])
        logs = _logits(table, ratio)
        order = np.argsort(values, kind="stable")
        return FittedWeighted(values[order], np.exp(logs - logs.max())[order], coder, ratio, float(logs.max()))

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> FittedWeighted:
        """The fit that ``state`` was taken from.

        Raises:
            StoreError: where an array is missing or broken.
        """
        try:
            coder = _Coder.from_data(json.loads(from_text(state["coder"])))
            scores, weights, ratio = (np.array(state[key], dtype=np.float64) for key in ("scores", "weights", "ratio"))
            highest = float(state["highest"][0])
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise StoreError(f"the state of {self} is broken: {error}") from error
        sound = scores.ndim == 1 and len(scores) and scores.shape == weights.shape and ratio.shape == (coder.width + 1,)
        sound = (
            sound
            and bool(((weights > 0) & np.isfinite(weights)).all())
            and not np.isnan(scores).any()
            and not (np.diff(scores) < 0).any()
        )
        if not sound or not np.isfinite(ratio).all() or not np.isfinite(highest):
            raise StoreError(f"the state of {self} is broken", needed="rising scores with a positive weight each")
        return FittedWeighted(scores, weights, coder, ratio, highest)


@dataclass(frozen=True, eq=False)
class FittedWeighted:
    """P-values against the weighted scores of held-out trusted inputs.

    Args:
        scores: (n,) calibration scores, rising.
        weights: (n,) their weights, the largest of them 1.
        coder: from covariates to numbers.
        ratio: (width + 1,) coefficients of the log weight, the last the constant.
        highest: log weight that counts as a weight of 1.
    """

    scores: Array
    weights: Array
    coder: _Coder
    ratio: Array
    highest: float

    def __post_init__(self) -> None:
        for array in (self.scores, self.weights, self.ratio):
            array.setflags(write=False)

    @property
    def effective_size(self) -> float:
        """Calibration inputs in effect: ``(sum w)^2 / sum w^2``, n where all weights are equal."""
        return float(self.weights.sum() ** 2 / (self.weights**2).sum())

    @property
    def smallest(self) -> float:
        """The smallest p-value of an input whose weight is the largest among the calibration inputs."""
        return float(1 / (self.weights.sum() + 1))

    def p_values(self, scores: npt.ArrayLike, *, covariates: Mapping[str, npt.ArrayLike]) -> Array:
        """P-values (m,) of anomaly scores (m,), with the covariates of the same inputs: smaller = more anomalous.

        Raises:
            CalibrationError: where the scores are no (m,) array of numbers, a covariate is missing, or an input is of a
                category that no calibration input has.
        """
        values = as_scores(scores, what="scores")
        if not len(values):
            return values
        unknown = self.coder.unknown(covariates, len(values))
        if unknown:
            raise self.coder.error(unknown, len(values), "inputs")
        own = np.exp(_logits(self.coder(covariates, len(values)), self.ratio) - self.highest)
        above = np.append(np.cumsum(self.weights[::-1])[::-1], 0.0)  # weight of this and all higher scores
        p: Array = (own + above[np.searchsorted(self.scores, values, side="left")]) / (own + above[0])
        return p

    def require(self, alpha: float) -> None:
        """Nothing, where some score can be flagged at ``alpha``.

        Raises:
            CalibrationError: where the weights leave too few calibration inputs in effect.
        """
        if max(self.smallest, 1 / (self.effective_size + 1)) <= as_alpha(alpha):
            return
        raise CalibrationError(
            f"alpha={alpha:g} can hardly flag anything: weighted by {', '.join(self.coder.names)}, the "
            f"{len(self.scores)} calibration inputs count as {self.effective_size:.1f}, with a smallest p-value of "
            f"{self.smallest:.2g}",
            causes=["trusted and untrusted inputs hardly overlap in these covariates"],
            tries=["trusted inputs more like the untrusted ones", "fewer covariates", "a larger alpha"],
        )

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays that `Weighted.restore` takes."""
        coder = to_text(json.dumps(self.coder.to_data()))
        highest = np.array([self.highest])
        return {"scores": self.scores, "weights": self.weights, "coder": coder, "ratio": self.ratio, "highest": highest}


@dataclass(frozen=True)
class _Coder:
    """From covariates to a table: numbers in trusted standard deviations, categories as indicators.

    Args:
        names: the covariates.
        scales: name -> (mean, deviation) of a number.
        categories: name -> the categories of the calibration inputs; each has an indicator, so that no name is special.
    """

    names: tuple[str, ...]
    scales: Mapping[str, tuple[float, float]]
    categories: Mapping[str, tuple[str, ...]]

    @classmethod
    def fit(cls, names: tuple[str, ...], covariates: Mapping[str, npt.ArrayLike], count: int) -> _Coder:
        scales, categories = {}, {}
        for name in names:
            values = as_covariate(covariates, name, count)
            if values.dtype.kind in "iuf" and name != "class":
                numbers = values.astype(np.float64)
                deviation = float(numbers.std())
                scales[name] = float(numbers.mean()), deviation if deviation > 0 else 1.0
            else:
                categories[name] = tuple(sorted(set(map(as_label, values.tolist()))))
        return cls(tuple(names), scales, categories)

    @property
    def width(self) -> int:
        return len(self.scales) + sum(map(len, self.categories.values()))

    def __call__(self, covariates: Mapping[str, npt.ArrayLike], count: int) -> Array:
        columns = []
        for name in self.names:
            values = as_covariate(covariates, name, count, number=name in self.scales)
            if name in self.scales:
                mean, deviation = self.scales[name]
                columns.append((values - mean) / deviation)
            else:
                texts = list(map(as_label, values.tolist()))
                columns += [np.array([one == text for text in texts], float) for one in self.categories[name]]
        return np.stack(columns, axis=1) if columns else np.empty((count, 0))

    def unknown(self, covariates: Mapping[str, npt.ArrayLike], count: int) -> dict[tuple[str, str], list[int]]:
        """(name, category) that no calibration input has -> the rows of it."""
        found: dict[tuple[str, str], list[int]] = {}
        for name, known in self.categories.items():
            for row, value in enumerate(as_covariate(covariates, name, count).tolist()):
                if as_label(value) not in known:
                    found.setdefault((name, as_label(value)), []).append(row)
        return found

    def error(self, unknown: Mapping[tuple[str, str], list[int]], count: int, what: str) -> CalibrationError:
        """What is wrong with inputs of categories that no calibration input has."""
        said = ", ".join(f"{name} {value}" for name, value in sorted(unknown)[:5])
        names = sorted({name for name, _ in unknown})
        return CalibrationError(
            f"{len(set().union(*unknown.values()))} of {count} {what} are of {said}, of which there are no calibration "
            "inputs",
            needed="; ".join(f"{name} one of {', '.join(self.categories[name][:10])}" for name in names),
            causes=["the model predicts a class that it predicts for no trusted input"] * ("class" in names),
            tries=["trusted inputs of this kind", "calibrator=Conformal(), which compares with all of them"],
        )

    def to_data(self) -> dict[str, Any]:
        return {"names": self.names, "scales": self.scales, "categories": self.categories}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> _Coder:
        scales = {str(key): (float(mean), float(deviation)) for key, (mean, deviation) in data["scales"].items()}
        categories = {str(key): tuple(map(str, names)) for key, names in data["categories"].items()}
        return cls(tuple(map(str, data["names"])), scales, categories)


def _log_ratio(calibration: Array, untrusted: Array) -> Array:
    """(width + 1,) coefficients of log w; the constant plays no part, since only ratios of weights do."""
    varying = np.ptp(np.concatenate([calibration, untrusted]), axis=0) > 0
    found = np.zeros(calibration.shape[1] + 1)
    if varying.any():
        from sklearn.linear_model import LogisticRegression

        rows = np.concatenate([calibration, untrusted])[:, varying]
        side = np.repeat([0, 1], [len(calibration), len(untrusted)])
        fitted = LogisticRegression(class_weight="balanced", max_iter=1000).fit(rows, side)
        found[:-1][varying] = fitted.coef_[0]
        found[-1] = fitted.intercept_[0]
    return found


def _logits(table: Array, ratio: Array) -> Array:
    return np.asarray(np.clip(table @ ratio[:-1] + ratio[-1], -_WIDEST, _WIDEST), dtype=np.float64)
