"""Metrics of a detector on labelled inputs; scores are anomaly scores, higher = more anomalous."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from causalmad.errors import InputsError

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def auroc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Chance that an anomalous input scores above a normal one, ties counting half: 0.5 = it tells nothing, 1 = all.

    Args:
        labels: (n,) True = anomalous.
        scores: (n,) anomaly scores.

    Raises:
        InputsError: when the two do not match, a score is NaN, or only one kind of input is there.
    """
    from sklearn.metrics import roc_auc_score

    known, found = _checked(labels, scores)
    return float(roc_auc_score(known, found))


def average_precision(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area under the precision-recall curve, as a step function: the share of anomalies is chance, 1 = all.

    Args:
        labels: (n,) True = anomalous.
        scores: (n,) anomaly scores.

    Raises:
        InputsError: when the two do not match, a score is NaN, or only one kind of input is there.
    """
    from sklearn.metrics import average_precision_score

    known, found = _checked(labels, scores)
    return float(average_precision_score(known, found))


def tpr_at_fpr(labels: npt.ArrayLike, scores: npt.ArrayLike, fpr: float) -> float:
    """Share of anomalies at or above the lowest threshold that at most a share ``fpr`` of normal inputs reaches.

    Args:
        labels: (n,) True = anomalous.
        scores: (n,) anomaly scores.
        fpr: share of normal inputs, from 0 to 1.

    Raises:
        InputsError: when the two do not match, a score is NaN, or only one kind of input is there.
    """
    from sklearn.metrics import roc_curve

    known, found = _checked(labels, scores)
    false, true, _ = roc_curve(known, found, drop_intermediate=False)
    return float(true[false <= fpr].max())


def interval95(values: npt.ArrayLike) -> tuple[float, float]:
    """Student's 95 % interval (lo, hi) of the mean of independent values, as of models on their own inputs.

    Values on the same inputs are not independent: what other inputs would have given is then not in it. One value has
    no interval: (nan, nan). It supposes that means are about normal, and so may reach past a metric's bounds when the
    values are few or close to them.

    Raises:
        InputsError: when there are no values.
    """
    from scipy.stats import t

    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not len(found):
        raise InputsError(f"values of shape {found.shape}", needed="(n,) numbers, at least one")
    if len(found) == 1:
        return math.nan, math.nan
    half = float(t.ppf(0.975, len(found) - 1)) * float(found.std(ddof=1)) / math.sqrt(len(found))
    return float(found.mean()) - half, float(found.mean()) + half


def _checked(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Flags, Floats]:
    known, found = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if known.shape != found.shape or known.ndim != 1:
        raise InputsError(f"labels of shape {known.shape} and scores of shape {found.shape}", needed="(n,) of both")
    if np.isnan(found).any():
        raise InputsError(f"{int(np.isnan(found).sum())} of {len(found)} scores are NaN")
    if not np.isin(known, (0, 1)).all():
        raise InputsError("labels other than True and False", needed="True = anomalous, False = normal")
    flags = known.astype(bool)
    if flags.all() or not flags.any():
        raise InputsError(
            f"{int(flags.sum())} of {len(flags)} inputs are anomalous",
            needed="normal and anomalous inputs, at least one each",
        )
    # Infinite scores (a density of zero) rank like any other, but scikit-learn refuses them; only ranks count here.
    return flags, found if np.isfinite(found).all() else np.unique(found, return_inverse=True)[1].astype(np.float64)
