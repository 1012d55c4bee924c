"""The score of a fitted detector as a tensor through which gradients flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causalmad.detector import FittedDetector
from causalmad.errors import SpecError
from causalmad.evaluation.attacks.columns import columns
from causalmad.evaluation.attacks.graphs import GraphModel
from causalmad.inputs import Batch
from causalmad.references.base import FittedReference, anomaly_scores
from causalmad.references.covariance import Spread
from causalmad.references.mahalanobis import FittedMahalanobis
from causalmad.references.per_site import FittedPerSite
from causalmad.references.relative_mahalanobis import FittedRelativeMahalanobis

_NO_DISTANCE = 1e-12
_KNOTS = 50


@dataclass(frozen=True, eq=False)
class WhiteBox:
    """A fitted detector as its attacker sees it: everything about it is known, donors and calibration included.

    Attributes:
        fitted: the detector.
        model: the view of its model that is run.
        centre: (parts,) median score of the trusted inputs, of each part that has a score of its own.
        width: (parts,) scaled median absolute deviation of these scores.
    """

    fitted: FittedDetector
    model: GraphModel
    centre: Tensor
    width: Tensor

    @classmethod
    def of(cls, fitted: FittedDetector) -> WhiteBox:
        """The detector, seen through.

        Raises:
            SpecError: when its signature or reference has no gradient here.
        """
        rows = fitted.trusted.values.astype(np.float64)
        trusted = torch.from_numpy(np.stack([anomaly_scores(p.score_samples, rows[:, c]) for p, c in _parts(fitted)]))
        centre = trusted.median(1).values
        width = 1.4826 * (trusted - centre[:, None]).abs().median(1).values
        return cls(fitted, GraphModel.of(fitted.model), centre, width.clamp_min(1e-9))

    def parts(self, batch: Batch, model: GraphModel | None = None) -> Tensor:
        """(batch, parts) anomaly scores: one, or one for each part of a `PerSite`, in that part's own unit."""
        rows = columns(self.fitted.signature, model or self.model, batch)
        return torch.stack([_score(part, rows[:, chosen]) for part, chosen in _parts(self.fitted)], dim=1)

    def score(self, batch: Batch, model: GraphModel | None = None) -> Tensor:
        """(batch,) the detector's anomaly score; of a `PerSite` that ranks (all but ``mean``) it has no gradient."""
        parts, reference = self.parts(batch, model), self.fitted.reference
        if not isinstance(reference, FittedPerSite):
            return parts[:, 0]
        if reference.combine == "mean":
            return ((parts - torch.tensor(reference.centre)) / torch.tensor(reference.width)).mean(1)
        return torch.from_numpy(reference._terms(parts.detach().numpy()).sum(1))

    def excess(self, batch: Batch, model: GraphModel | None = None) -> Tensor:
        """(batch,) what an attacker pushes down.

        Of a `PerSite` that combines by Fisher's method its own score, -2 times the sum of log p-values, with straight
        lines in place of the steps of the p-values. Else how far the parts' scores lie above their trusted medians,
        summed: zero at and below the median. Distances from the median are in trusted deviations, linear near it and
        logarithmic far from it.
        """
        away, reference = self._away(self.parts(batch, model)), self.fitted.reference
        if not isinstance(reference, FittedPerSite) or reference.combine != "fisher" or len(reference.unseen) < 2:
            return away.clamp_min(0).sum(1)
        known = self._away(torch.tensor(reference.unseen))
        count = len(known)
        # A knot every few trusted scores: between two neighbours a line may be as steep as a step.
        knots = torch.linspace(0, count - 1, min(count, _KNOTS)).round().long()
        levels = -2 * ((count - knots) / (count + 1)).to(away).log()
        return torch.stack([_along(known[knots, k], levels, part) for k, part in enumerate(away.unbind(1))], 1).sum(1)

    def _away(self, scores: Tensor) -> Tensor:
        return ((scores - self.centre) / self.width).asinh()


def _along(places: Tensor, levels: Tensor, values: Tensor) -> Tensor:
    """The line through some points at some values; beyond the last points it goes straight on."""
    right = torch.searchsorted(places, values.detach().contiguous()).clamp(1, len(places) - 1)
    rise = levels[right] - levels[right - 1]
    return levels[right - 1] + rise / (places[right] - places[right - 1]).clamp_min(1e-9) * (values - places[right - 1])


def _parts(fitted: FittedDetector) -> list[tuple[FittedReference, Any]]:
    reference = fitted.reference
    if isinstance(reference, FittedPerSite):
        return [(part, reference.site == k) for k, part in enumerate(reference.members)]
    return [(reference, slice(None))]


def _score(reference: FittedReference, rows: Tensor) -> Tensor:
    if isinstance(reference, FittedMahalanobis):
        distances = _distances(reference.spread, rows)
        if reference.two_sided is None:
            return distances
        centre, width = reference.two_sided
        return (distances.clamp_min(_NO_DISTANCE).log() - centre).abs() / width
    if isinstance(reference, FittedRelativeMahalanobis):
        own = torch.stack([_distances(reference.within, rows, mean) for mean in reference.means], dim=1)
        return own.min(1).values - _distances(reference.background, rows)
    raise SpecError(
        f"the score of {type(reference).__name__} has no gradient here",
        needed="Mahalanobis, RelativeMahalanobis, or a PerSite of them",
        tries=["searched(...), which needs scores alone"],
    )


def _distances(spread: Spread, rows: Tensor, mean: Any = None) -> Tensor:
    off = (rows - torch.tensor(spread.mean if mean is None else mean)) / torch.tensor(spread.scale)
    precision = torch.tensor(spread.precision)
    return ((off @ precision if precision.ndim == 2 else off * precision) * off).sum(1).clamp_min(0)
