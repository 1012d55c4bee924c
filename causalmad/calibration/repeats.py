"""Contents that stand more than once among the calibration inputs: p-values that hold whatever the copies mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.errors import CausalmadError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FittedRepeats:
    """The larger of two p-values: against every content once, and against every input with all its copies.

    Copies may come from how the inputs were collected (sampled with replacement, or joined from several files). Then
    they say nothing new of what is normal: 30 contents ten times each are 30 calibration inputs, and p-values against
    300 would be too small. Or the inputs to come repeat as the trusted ones do (the same prompt from many users). Then
    a content counts as often as it occurs: one that makes 4 % of all inputs, and is flagged, is 4 % of all inputs
    flagged. Nothing in the inputs says which it is; the larger p-value keeps the promise of the calibrator either way.

    Whatever else is asked of it (``scores``, ``strata``, ``effective_size``) is that of the contents.

    Args:
        contents: the calibrator fitted on one input of each content.
        rows: the calibrator fitted on all inputs.
    """

    contents: Any
    rows: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "contents" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.contents, name)

    @property
    def plain(self) -> Any:
        """What a score is compared with first: where that is scores alone, they can be a threshold."""
        return getattr(self.contents, "plain", self.contents)

    @property
    def smallest(self) -> float:
        """The smallest p-value that any score can get."""
        return float(max(self.contents.smallest, self.rows.smallest))

    def p_values(self, scores: npt.ArrayLike, **given: Any) -> Array:
        """P-values (m,), with what the calibrator's own take: smaller = more anomalous.

        Raises:
            CalibrationError: as the calibrator's own do.
        """
        p: Array = np.maximum(self.contents.p_values(scores, **given), self.rows.p_values(scores, **given))
        return p

    def require(self, alpha: float) -> None:
        """Nothing, where some score can be flagged at ``alpha``; the contents decide, not their copies.

        Raises:
            CalibrationError: as the calibrator's own does.
        """
        try:
            self.contents.require(alpha)
        except CausalmadError as error:
            causes = (*error.causes, "copies among the trusted inputs: of each content one counts")
            raise type(error)(error.what, needed=error.needed, causes=causes, tries=error.tries) from None
        self.rows.require(alpha)

    def conditional(self, delta: float) -> FittedRepeats:
        """P-values that are valid given the calibration inputs, with probability 1 - delta over these."""
        return FittedRepeats(self.contents.conditional(delta), self.rows.conditional(delta))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays that :func:`restore_repeats` takes."""
        kept = {f"contents:{name}": array for name, array in self.contents.state().items()}
        return kept | {f"rows:{name}": array for name, array in self.rows.state().items()}


def restore_repeats(calibrator: Any, state: Mapping[str, npt.NDArray[Any]]) -> FittedRepeats:
    """The fit that ``state`` was taken from.

    Raises:
        StoreError: where one of the two cannot be restored.
    """
    parts = []
    for start in ("contents:", "rows:"):
        own = {name.removeprefix(start): array for name, array in state.items() if name.startswith(start)}
        parts.append(calibrator.restore(own))
    return FittedRepeats(*parts)
