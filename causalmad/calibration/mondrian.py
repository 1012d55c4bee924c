"""P-values within strata: like is compared with like."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.calibration.base import as_alpha, as_covariate, as_label, as_scores, from_text, to_text
from causalmad.calibration.conformal import Conformal
from causalmad.config import require_options
from causalmad.errors import CalibrationError, CausalmadError, SpecError, StoreError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Mondrian:
    """P-values within strata (predicted class, a column, bins of a number), valid within each of them.

    An input is compared with the calibration inputs of its own stratum alone, so that within every stratum at most a
    share alpha of normal inputs is flagged, and not only over all of them. Every stratum needs calibration inputs
    enough for alpha by itself: 99 for alpha = 0.01; `require` names those that have fewer.

    A new input whose stratum has no calibration inputs is an error that names the stratum. There is nothing to compare
    it with: p = 1 would never flag what may be the oddest input of all, and a p-value against all strata would not mean
    what the others mean.

    Args:
        by: what the strata are: ``class`` (the class that the model predicts), ``length``, or a column of the inputs.
        calibrator: the calibrator within each stratum, of scores alone.
        bins: number of bins by quantiles of the calibration inputs, for a numeric ``by``; None takes every value as a
            stratum.

    References:
        Vovk, Gammerman, Shafer 2005, "Algorithmic learning in a random world", chapter 4.
    """

    by: str = "class"
    calibrator: Any = field(default_factory=Conformal)
    bins: int | None = None

    def __post_init__(self) -> None:
        require_options(self)
        if not self.by or not isinstance(self.by, str):
            raise SpecError(f"by={self.by!r}", needed="a name", tries=["by='class'", "by='length', bins=3"])
        if self.bins is not None and self.bins < 2:
            raise SpecError(f"bins={self.bins}", needed="at least 2 bins, or None")
        if getattr(self.calibrator, "asks", ()) or hasattr(self.calibrator, "folds"):
            raise SpecError(
                f"calibrator={self.calibrator!r} takes more than scores",
                needed="a calibrator of scores alone",
                tries=["Conformal()", "CalibrationConditional()"],
            )

    @property
    def asks(self) -> tuple[str, ...]:
        """Names of the covariates that it needs."""
        return (self.by,)

    def fit(self, scores: npt.ArrayLike, *, covariates: Mapping[str, npt.ArrayLike]) -> FittedMondrian:
        """The fit on anomaly scores (n,) and the covariate ``by`` (n,) of held-out trusted inputs.

        Raises:
            CalibrationError: where there are no scores, some are NaN, or the covariate is missing or has gaps.
        """
        values = as_scores(scores, what="calibration scores")
        self.calibrator.fit(values)  # says what is wrong with the scores as a whole
        labels = as_covariate(covariates, self.by, len(values), number=self.bins is not None)
        edges = np.empty(0)
        if self.bins is not None:
            # Borders are values that occur, above the smallest: no bin is empty, however many are tied.
            edges = np.unique(np.quantile(labels, np.arange(1, self.bins) / self.bins, method="higher"))
            edges = edges[edges > labels.min()]
            labels = np.searchsorted(edges, labels, side="right")
        found = {as_label(one): self.calibrator.fit(values[labels == one]) for one in np.unique(labels)}
        return FittedMondrian(self.by, edges, found, self.bins is not None)

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> FittedMondrian:
        """The fit that ``state`` was taken from.

        Raises:
            StoreError: where a stratum is missing or broken.
        """
        try:
            names = json.loads(from_text(state["strata"]))
            edges = np.array(state["edges"], dtype=np.float64)
            parts: dict[str, Any] = {}
            for number, name in enumerate(names):
                start = f"{number}:"
                own = {key.removeprefix(start): state[key] for key in state if key.startswith(start)}
                parts[str(name)] = self.calibrator.restore(own)
        except (KeyError, ValueError, TypeError) as error:
            raise StoreError(f"the state of {self} is broken: {error}") from error
        broken = not np.isfinite(edges).all() or (np.diff(edges) <= 0).any() or (self.bins is None and len(edges))
        if not parts or edges.ndim != 1 or broken:
            raise StoreError(f"the state of {self} is broken", needed="strata, and rising edges of bins")
        return FittedMondrian(self.by, edges, parts, self.bins is not None)


@dataclass(frozen=True, eq=False)
class FittedMondrian:
    """P-values against the held-out trusted inputs of the same stratum.

    Args:
        by: name of the covariate.
        edges: (bins - 1,) rising borders of the bins; a value on a border is in the upper bin. Empty without bins.
        strata: stratum -> its fitted calibrator.
        binned: whether the strata are bins; a constant has one bin and no border.
    """

    by: str
    edges: Array
    strata: Mapping[str, Any]
    binned: bool = False

    @property
    def smallest(self) -> float:
        """The smallest p-value that a score can get in every stratum."""
        return max(float(one.smallest) for one in self.strata.values())

    def p_values(self, scores: npt.ArrayLike, *, covariates: Mapping[str, npt.ArrayLike]) -> Array:
        """P-values (m,) of anomaly scores (m,), each within its stratum.

        Raises:
            CalibrationError: where the scores are no (m,) array of numbers, or a stratum has no calibration inputs.
        """
        values = as_scores(scores, what="scores")
        keys = self.strata_of(covariates, len(values))
        unknown = sorted(set(keys) - set(self.strata))
        if unknown:
            count = sum(key in unknown for key in keys)
            raise CalibrationError(
                f"{count} of {len(keys)} inputs are of {self.by} {', '.join(map(self._said, unknown[:5]))}, "
                "of which there are no calibration inputs",
                needed=f"one of {', '.join(map(self._said, list(self.strata)[:10]))}",
                causes=["the model predicts a class that it predicts for no trusted input"] * (self.by == "class"),
                tries=["trusted inputs of this kind", "calibrator=Conformal(), which compares with all of them"],
            )
        p = np.empty(len(values))
        for key, one in self.strata.items():
            rows = np.array([own == key for own in keys], dtype=bool)
            if rows.any():
                p[rows] = one.p_values(values[rows])
        return p

    def strata_of(self, covariates: Mapping[str, npt.ArrayLike], count: int) -> list[str]:
        """The stratum of every input."""
        labels = as_covariate(covariates, self.by, count, number=self.binned)
        if self.binned:
            labels = np.searchsorted(self.edges, labels, side="right")
        return [as_label(one) for one in labels]

    def require(self, alpha: float) -> None:
        """Nothing, where some score can be flagged at ``alpha`` in every stratum.

        Raises:
            CalibrationError: where it cannot, with the strata that are too small.
        """
        small, worst = [], None
        as_alpha(alpha)
        for key, one in self.strata.items():
            try:
                one.require(alpha)
            except CausalmadError as error:
                small.append(f"{self._said(key)} (p at least {one.smallest:.2g})")
                if worst is None or one.smallest >= worst.smallest:
                    worst, tries = one, error.tries
        if worst is not None:
            raise CalibrationError(
                f"alpha={alpha:g} can never flag anything within {self.by} {', '.join(small[:8])}"
                + (f" and {len(small) - 8} more" if len(small) > 8 else ""),
                needed="calibration inputs enough in every stratum",
                tries=[*tries[:2], "fewer bins" if self.binned else "bins=3, where it is a number", "Conformal()"],
            )

    def _said(self, key: str) -> str:
        """A stratum in words: of a bin, its borders."""
        if not self.binned:
            return key
        ends = [-np.inf, *self.edges, np.inf]
        low, high = ends[int(key)], ends[int(key) + 1]
        return f"below {high:g}" if low == -np.inf else f"{low:g} or more" if high == np.inf else f"{low:g} to {high:g}"

    def conditional(self, delta: float) -> FittedMondrian:
        """P-values that are valid given the calibration inputs, in all strata at once with probability 1 - delta."""
        share = delta / len(self.strata)
        parts = {key: one.conditional(share) for key, one in self.strata.items()}
        return FittedMondrian(self.by, self.edges, parts, self.binned)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays that `Mondrian.restore` takes."""
        kept: dict[str, npt.NDArray[Any]] = {"strata": to_text(json.dumps(list(self.strata))), "edges": self.edges}
        for number, one in enumerate(self.strata.values()):
            kept |= {f"{number}:{key}": array for key, array in one.state().items()}
        return kept
