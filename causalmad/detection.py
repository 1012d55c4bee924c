"""Detection: scores, p-values and flags of some inputs, and the reasons."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.errors import InputsError, nearest
from causalmad.explanation import Explanation, plain
from causalmad.signatures.base import Signatures

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Detection:
    """What a detector says of some inputs.

    Attributes:
        signatures: the inputs' signatures, with their ids and columns.
        scores: (n,) anomaly scores, higher = more anomalous.
        p_values: (n,) share of trusted inputs at least as anomalous, never zero.
        alpha: flags are p-values of at most this; with ``fdr``, adjusted p-values.
        provenance: seed, versions, ids of the trusted parts; ``also trusted`` lists ids that the detector was fitted
            on, whose p-values mean nothing; ``also untrusted`` lists those of the unlabelled pool with which the
            reference compares: it knows them, unlike the calibration inputs, so their p-values are no exact ones.
        reason: row -> its explanation, computed when asked for.
        fdr: how the false discovery rate is bounded by ``alpha``; None where every input is tested for itself.
        adjusted: (n,) p-values adjusted for all inputs at once, where ``fdr`` is one.
        note: what the size of the calibration set rules out, or nothing.
        calibrator: the fitted calibrator that gave the p-values; without it there is no threshold.
    """

    signatures: Signatures
    scores: Floats
    p_values: Floats
    alpha: float
    provenance: Mapping[str, Any]
    reason: Callable[[int], Explanation]
    fdr: str | None = None
    adjusted: Floats | None = None
    note: str = ""
    calibrator: Any = None

    @property
    def ids(self) -> tuple[str, ...]:
        """(n,) ids of the inputs."""
        return self.signatures.ids

    @property
    def flags(self) -> npt.NDArray[np.bool_]:
        """(n,) whether each input is flagged."""
        return np.asarray((self.p_values if self.adjusted is None else self.adjusted) <= self.alpha)

    @property
    def level(self) -> str:
        """What flags are bounded by, in words."""
        return f"alpha = {self.alpha:g}" if self.fdr is None else f"false discovery rate {self.alpha:g} ({self.fdr})"

    @property
    def threshold(self) -> float | None:
        """The score above which inputs are flagged.

        None where no single score decides: the calibrator compares like with like (strata, weights, folds), or a false
        discovery rate flags nothing.
        """
        known = getattr(self.calibrator, "plain", self.calibrator)
        scores = getattr(known, "scores", None)
        if scores is None or "covariates" in inspect.signature(known.p_values).parameters:
            return None
        level = self.p_values[self.flags].max(initial=0.0) if self.fdr else self.alpha
        kept = scores[self.calibrator.p_values(scores) > level]
        return float(kept.max()) if level and len(kept) else None

    def __repr__(self) -> str:
        """What was detected, in a line."""
        return f"Detection({int(self.flags.sum())} of {len(self)} inputs flagged at {self.level})"

    def __len__(self) -> int:
        return len(self.ids)

    def explain(self, key: int | str) -> Explanation:
        """Why an input scored as it did.

        Args:
            key: a whole number is a row, from 0 on; a text is an id, also where ids look like numbers.

        Raises:
            InputsError: when there is no such input.
        """
        if isinstance(key, str) and key in self.ids:
            return self.reason(self.ids.index(key))
        if isinstance(key, (int, np.integer)) and 0 <= key < len(self):
            return self.reason(int(key))
        raise InputsError(
            f"no input {key!r} in this detection",
            needed=f"one of its {len(self)} ids as a text, or a row number 0..{len(self) - 1}",
            tries=[repr(name) for name in nearest(str(key), self.ids)],
        )

    def rows(self) -> list[dict[str, object]]:
        """Every input as JSON data, with its reasons."""
        return [self.row(row) for row in range(len(self))]

    def row(self, row: int) -> dict[str, object]:
        """One input as JSON data: enough to explain it without the detector."""
        level: dict[str, object] = {"alpha": self.alpha}
        if self.adjusted is not None:
            level |= {"fdr": self.fdr, "p_adjusted": float(self.adjusted[row])}
        return {"id": self.ids[row], "flag": bool(self.flags[row]), **level, **self.reason(row).to_data()}

    def plot(self, labels: npt.ArrayLike | None = None, ax: Any = None) -> Any:
        """Matplotlib axes with a histogram of the scores: what is flagged, and the threshold.

        Args:
            labels: (n,) True = anomalous: then each kind has its histogram, with the AUROC in the legend.
            ax: axes to draw on; without, new ones, of a figure (``ax.figure``) that pyplot does not know of.

        Raises:
            SpecError: when matplotlib is not installed.
            InputsError: when the labels do not fit the inputs.
        """
        from causalmad.plots.histogram import histogram

        title = f"{int(self.flags.sum())} of {len(self)} inputs flagged at {self.level}"
        return histogram(self.scores, self.flags, self.threshold, title, labels, ax)

    def _repr_html_(self) -> str:
        """The most anomalous inputs as a table for notebooks."""
        from causalmad.plots.tables import to_html

        return to_html(self.table())

    def __str__(self) -> str:
        """The most anomalous inputs as a table."""
        return plain(self.table())

    def table(self, top: int = 20) -> Any:
        """A rich table of the ``top`` most anomalous inputs."""
        from rich.table import Table

        title = f"{int(self.flags.sum())} of {len(self)} inputs flagged at {self.level}"
        hidden = len(self) - top
        known, pool = (len(self.provenance.get(f"also {kind}", ())) for kind in ("trusted", "untrusted"))
        notes = [f"{hidden} more inputs"] if hidden > 0 else []
        notes += [f"{known} were fitted on: their p-values mean nothing"] if known else []
        notes += [f"{pool} are of the untrusted pool, which the reference knows"] if pool else []
        notes += [self.note] if self.note and not self.flags.any() else []
        found = Table(title=title, title_justify="left", caption="; ".join(notes) or None)
        for heading, side in (("id", "left"), ("score", "right"), ("p", "right"), ("flag", "left")):
            found.add_column(heading, justify=side, overflow="fold")  # type: ignore[arg-type]
        found.add_column("leading column", overflow="fold")
        for row in np.argsort(-self.scores, kind="stable")[:top]:
            flag = "flag" if self.flags[row] else ""
            cells = (self.ids[row], f"{self.scores[row]:.4g}", f"{self.p_values[row]:.3g}", flag)
            found.add_row(*cells, self.reason(int(row)).leading)
        return found
