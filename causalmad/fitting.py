"""A reference on signatures: fitted on those of trusted inputs, and asked for the scores of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.references.base import FittedReference, anomaly_scores
from causalmad.references.estimators import fit_reference
from causalmad.references.folded import FittedFolds, fit_folds
from causalmad.signatures.base import FittedSignature, Signatures

Floats = npt.NDArray[np.float64]


def fit_on(
    reference: object, normal: Signatures, context: Mapping[str, npt.NDArray[Any]], seed: int
) -> FittedReference:
    """The reference fitted on trusted signatures; a saved detector calls this again for what no file can hold.

    Args:
        reference: the specification, or a scikit-learn estimator.
        normal: trusted signatures.
        context: see :class:`causalmad.FittedDetector`.
        seed: of estimators that draw.
    """
    given: dict[str, Any] = {
        "seed": seed,
        "untrusted": context.get("untrusted"),
        "groups": tuple(column.block or column.site for column in normal.columns),
        "names": tuple(column.name for column in normal.columns),
        "classes": context.get("classes"),
    }
    if "folds" in context:
        return fit_folds(reference, normal.values, context["folds"], **given)
    return fit_reference(reference, normal.values, **given)


def scores_of(reference: FittedReference, found: Signatures, *, each: bool = False) -> Floats:
    """(n,) anomaly scores; with ``each``, (n, folds) scores under every fold's reference."""
    normality = reference.each if each and isinstance(reference, FittedFolds) else reference.score_samples
    return anomaly_scores(normality, found.values)


def donor_digests(signature: FittedSignature) -> frozenset[str]:
    """Contents of the inputs that the signature uses as donors; they don't describe what is normal."""
    return frozenset(getattr(signature, "donor_digests", ()))
