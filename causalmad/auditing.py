"""Audit: which trusted inputs are unlike the other trusted ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.calibration.multiple import adjusted
from causalmad.covariates import predicted_classes
from causalmad.detector import Detector
from causalmad.errors import FitError, SpecError
from causalmad.explanation import plain
from causalmad.extraction.extract import rows_of
from causalmad.fitting import donor_digests, fit_on, scores_of
from causalmad.groups import apart
from causalmad.inputs import Inputs
from causalmad.models import OpenModel, open_model
from causalmad.models.batching import within_memory
from causalmad.references import PerSite
from causalmad.references.estimators import asks, compares, require_untrusted
from causalmad.refusals import require_use
from causalmad.splits import as_seed, by_content, folds_of

HEAVY = 1.25  # times what an exponential tail has
_SHOWN = 5

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Audit:
    """What an audit says of the trusted inputs.

    Attributes:
        ids: (n,) the inputs.
        scores: (n,) anomaly score of each, by a detector that has not seen it.
        folds: (n,) the fold of each; scores of different folds are on slightly different scales.
        p_values: (n,) how unusual the score is among those of its fold, in an exponential tail.
        adjusted: (n,) p-values adjusted for all inputs at once.
        q: inputs with an adjusted p-value of at most this are unlike the rest.
        members: (n,) whether an input is one of a minority that stands apart together.
        group_p_value: how unlikely the signatures would be where no minority stood apart.
    """

    ids: tuple[str, ...]
    scores: Floats
    folds: npt.NDArray[np.int64]
    p_values: Floats
    adjusted: Floats
    q: float
    members: npt.NDArray[np.bool_]
    group_p_value: float

    @property
    def unlike(self) -> tuple[str, ...]:
        """Ids of the inputs that are unlike the rest, the most unusual first."""
        order = np.argsort(self.p_values, kind="stable")
        return tuple(self.ids[row] for row in order if self.adjusted[row] <= self.q)

    @property
    def apart(self) -> tuple[str, ...]:
        """Ids of a minority that stands apart together, which are no outliers one by one; mostly there is none."""
        return tuple(self.ids[row] for row in np.flatnonzero(self.members))

    def __repr__(self) -> str:
        """How many, in a line."""
        group = f", {self.members.sum()} apart as a group" if self.members.any() else ""
        return f"Audit({len(self.unlike)} of {len(self.ids)} trusted inputs unlike the rest{group})"

    def __str__(self) -> str:
        """The most unusual trusted inputs as a table, and what is known of a group."""
        return plain(self.table()) + self._group()

    def _group(self) -> str:
        """A sentence on the group that stands apart; empty where there is none."""
        if not self.members.any():
            return ""
        few = ", ".join(self.apart[:_SHOWN]) + (", ..." if len(self.apart) > _SHOWN else "")
        share = f"{len(self.apart)} of {len(self.ids)} ({self.members.mean():.0%})"
        return (
            f"\n{share} stand apart from the rest as a group (p = {self.group_p_value:.2g}): {few}\n"
            "They may be a kind of normal input, or a contamination that the reference would learn: look at some.\n"
        )

    def table(self, top: int = 20) -> Any:
        """A rich table of the ``top`` most unusual trusted inputs."""
        from rich.table import Table

        title = (
            f"{len(self.unlike)} of {len(self.ids)} trusted inputs unlike the rest (false discovery rate {self.q:g})"
        )
        found = Table(title=title, title_justify="left")
        for heading, side in (("id", "left"), ("score", "right"), ("p", "right"), ("adjusted", "right")):
            found.add_column(heading, justify=side, overflow="fold")  # type: ignore[arg-type]
        for row in np.argsort(self.p_values, kind="stable")[:top]:
            numbers = (self.scores[row], self.p_values[row], self.adjusted[row])
            found.add_row(self.ids[row], *(f"{number:.3g}" for number in numbers))
        return found


def audit(
    detector: Detector,
    model: Any,
    trusted: Any,
    untrusted: Any = None,
    *,
    q: float = 0.1,
    folds: int = 5,
    seed: int = 0,
) -> Audit:
    """Trusted inputs that are unlike the other trusted ones: anomalies among what is trusted hide others like them.

    Every fold of the trusted inputs is scored by signature and reference fitted on the other folds. Ranks of trusted
    scores among each other cannot say whether any of them is unusual (the highest is always the highest), so the tail
    is modelled: within a fold, a score at distance e above the median has the p-value ``2^-(1 + e/m)``, m the median
    distance of the scores above the median. That is an exponential tail: heavier than that of a squared distance on
    Gaussian columns where these are more than two, just that one for two, and lighter for one. It is a model, and these
    p-values are no conformal ones. In simulations of such distances with folds of 20 to 200, at ``q = 0.1``, something
    was named in 0 to 9 % of clean sets for 20 columns, 2 to 16 % for 5, 18 to 31 % for 2 and 46 to 67 % for one.
    Scores up to the median have their rank.
    Where positive scores have a heavier tail than that over all folds, their logarithms are judged instead. A `PerSite`
    that combines p-values, as ``recommended`` does, is audited with ``combine="mean"``: a rank cannot tell how far the
    oddest lie.
    Benjamini and Hochberg's procedure at ``q`` names the inputs that are unlike the rest.

    Inputs of equal content share a fold, so that none is judged by its copy. In what order they come plays no part.

    Many bad inputs of one kind are no outliers: they are a direction in which trusted inputs vary. Therefore the
    signatures of all inputs together are asked whether a minority of them stands apart (:func:`causalmad.groups.apart`
    says how, and what it can see). Donors of the signature are left out of that.

    Args:
        detector: its signature and reference are used; its calibrator is not.
        model: whatever :func:`causalmad.open_model` takes.
        trusted: the inputs to audit.
        untrusted: unlabelled inputs, for references that compare with them.
        q: expected share of inputs named in error.
        folds: how many.
        seed: decides the folds, and whatever else is drawn.

    Raises:
        FitError: when there are fewer than 4 distinct inputs a fold.
        SpecError: when there are untrusted inputs and nothing in the detector looks at them, or it is fitted already.

    References:
        Hartigan, Hartigan 1985, The dip test of unimodality (Annals of Statistics 13).
        Tran, Li, Madry 2018, Spectral signatures in backdoor attacks, arXiv 1811.00636.
    """
    if not isinstance(detector, Detector):
        raise SpecError(
            f"a {type(detector).__name__} to audit with",
            needed="a detector that is not fitted: an audit fits it on part after part of the trusted inputs",
            tries=["audit(fitted.spec, model, trusted)", "audit(Detector(...), model, trusted)"],
        )
    seed = as_seed(seed)
    require_use(detector, untrusted)
    opened = open_model(model)
    inputs = opened.inputs(trusted)
    others = None if untrusted is None else opened.inputs(untrusted)
    distinct = len(set(inputs.digests))
    if folds < 2 or distinct < 4 * folds:
        raise FitError(
            f"{distinct} distinct trusted inputs in {folds} folds", needed="at least 2 folds, and 4 inputs in each"
        )
    scores, index = scores_by_fold(_without_ranks(detector), opened, inputs, others, folds, seed)
    p_values = np.empty(len(inputs))
    judged = np.log(scores) if heavy_tailed([scores[index == fold] for fold in range(folds)]) else scores
    for fold in range(folds):
        p_values[index == fold] = tail_p_values(judged[index == fold])
    p_value, members = group_of(detector, opened, inputs, seed)
    return Audit(inputs.ids, scores, index, p_values, adjusted(p_values, "bh"), q, members, p_value)


def group_of(detector: Detector, model: OpenModel, inputs: Inputs, seed: int) -> tuple[float, npt.NDArray[np.bool_]]:
    """A p-value for "no minority stands apart", and (n,) its members, by the signature fitted on all inputs."""
    order = by_content(inputs)
    signature = within_memory(model, lambda: detector.signature.fit(model, inputs[order], seed))
    donors = donor_digests(signature)
    kept = order[[inputs.digests[row] not in donors for row in order]]
    p_value, found = apart(rows_of(signature, detector.signature, model, None, inputs[kept]).values)
    members = np.zeros(len(inputs), dtype=bool)
    members[kept[found]] = True
    return p_value, members


def scores_by_fold(
    detector: Detector, model: OpenModel, inputs: Inputs, untrusted: Inputs | None, folds: int, seed: int
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """(n,) anomaly score of each input by signature and reference fitted on the other folds, and (n,) its fold."""
    require_untrusted(detector.reference, untrusted)
    index = folds_of(inputs, folds, seed)
    order = by_content(inputs)
    untrusted = None if untrusted is None else untrusted[by_content(untrusted)]
    scores = np.empty(len(inputs))
    for fold in range(folds):
        rest, held = inputs[order[index[order] != fold]], order[index[order] == fold]
        signature = within_memory(model, lambda rest=rest: detector.signature.fit(model, rest, seed))  # type: ignore[misc]
        rows = partial(rows_of, signature, detector.signature, model, None)
        donors = donor_digests(signature)
        kept = rest[[row for row, content in enumerate(rest.digests) if content not in donors]]
        context: dict[str, npt.NDArray[Any]] = {}
        if untrusted is not None and compares(detector.reference):
            context["untrusted"] = rows(untrusted).values
        if "classes" in asks(detector.reference):
            context["classes"] = predicted_classes(model, kept)
        reference = fit_on(detector.reference, rows(kept), context, seed)
        scores[held] = scores_of(reference, rows(inputs[held]))
    return scores, index


def _without_ranks(detector: Detector) -> Detector:
    """The detector, with scores in place of p-values where a `PerSite` combines these."""
    reference = detector.reference
    if not isinstance(reference, PerSite) or reference.combine in ("mean", "max"):
        return detector
    return replace(detector, reference=replace(reference, combine="mean"))


def heavy_tailed(parts: Sequence[Floats]) -> bool:
    """Whether positive scores have a heavier than exponential tail: a fifth of those above the median lie too far.

    Args:
        parts: scores of every fold, each on its own scale.
    """
    if any((scores <= 0).any() for scores in parts):
        return False
    above = [scores[scores > np.median(scores)] - np.median(scores) for scores in parts]
    excess = np.concatenate([part / np.median(part) for part in above if len(part)] or [np.zeros(1)])
    return bool(np.quantile(excess, 0.8) > HEAVY * np.log2(5))


def tail_p_values(scores: Floats) -> Floats:
    """(n,) p-values of scores among each other: ranks up to the median, an exponential tail above it."""
    centre = float(np.median(scores))
    above = scores[scores > centre] - centre
    typical = float(np.median(above)) if len(above) else 1.0
    ranks = 1 - np.searchsorted(np.sort(scores), scores, side="left") / max(len(scores), 1)
    excess = np.maximum(scores - centre, 0.0) / typical
    p: Floats = np.where(scores > centre, np.exp2(-1 - excess), np.maximum(ranks, 0.5))
    return p
