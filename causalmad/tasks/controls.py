"""Surface controls: what can be told from the output, the input or the activations alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[np.float64]


def distances(trusted: Array, rows: Array) -> Array:
    """(n,) squared Mahalanobis distance of rows from trusted rows: standardised columns, Ledoit-Wolf covariance."""
    from scipy.linalg import cho_factor, cho_solve
    from sklearn.covariance import ledoit_wolf

    centre, scale = trusted.mean(0), trusted.std(0)
    used = scale > 1e-8
    covariance, _ = ledoit_wolf((trusted[:, used] - centre[used]) / scale[used])
    off = (rows[:, used] - centre[used]) / scale[used]
    found: Array = np.sum(off * cho_solve(cho_factor(covariance), off.T).T, axis=1)
    return found


def two_sided(trusted: Array, rows: Array) -> Array:
    """(n,) how far the log distance lies from the usual one, either way.

    The last third of the trusted rows says what is usual.
    """
    cut = 2 * len(trusted) // 3
    usual = np.median(np.log(distances(trusted[:cut], trusted[cut:])))
    odd: Array = np.abs(np.log(distances(trusted[:cut], rows)) - usual)
    return odd


def control_scores(
    labels: npt.NDArray[np.bool_],
    margins: Array,
    inputs: tuple[Tensor, Tensor],
    layers: Sequence[tuple[Tensor, Tensor]],
) -> dict[str, float]:
    """AUROC of each control on the test inputs (0.5 = it tells nothing).

    Args:
        labels: (n,) True = anomalous.
        margins: (n,) output margins of the test inputs.
        inputs: the raw inputs (or one-hot tokens) as rows: trusted, test.
        layers: the same of each layer's activations.
    """
    from sklearn.metrics import roc_auc_score

    raw, *each = [(a.double().numpy(), b.double().numpy()) for a, b in (inputs, *layers)]
    joined = np.concatenate([a for a, _ in each], 1), np.concatenate([b for _, b in each], 1)
    scores = {
        "output confidence": -margins,
        "input mahalanobis": distances(*raw),
        "activation mahalanobis": distances(*joined),
        "activation mahalanobis, mean of layers": np.mean([distances(a, b) for a, b in each], axis=0),
        "activation mahalanobis, two-sided": two_sided(*joined),
    }
    return {name: round(float(roc_auc_score(labels, score)), 4) for name, score in scores.items()}
