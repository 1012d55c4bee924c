"""Test inputs whose output margin says nothing about their kind."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.errors import TaskError

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

BINS = 60
FEWEST = 250


def margins(logits: Tensor) -> Array:
    """(n,) margin of each row of (n, classes) logits: the top logit minus the logsumexp of the others.

    It orders inputs as the largest probability does.
    """
    values = logits.double()
    top, best = values.max(-1)
    others = values.scatter(-1, best.unsqueeze(-1), -torch.inf)
    gap: Array = (top - torch.logsumexp(others, -1)).numpy()
    return gap


def matched_test(
    candidates: Array, normal: int, count: int, rng: np.random.Generator
) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """Rows of a test set in random order, and its labels (True = anomalous).

    Args:
        candidates: (n,) margins, those of the normal candidates first.
        normal: how many of them are normal.
        count: wanted of each kind.
        rng: chooses and shuffles.
    """
    first, second = matched(candidates[:normal], candidates[normal:], count, rng)
    rows, labels = np.concatenate([first, second + normal]), np.repeat([False, True], [len(first), len(second)])
    order = rng.permutation(len(rows))
    return rows[order], labels[order]


def matched(normal: Array, anomalous: Array, count: int, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Rows of either kind with equal histograms of margins, at most ``count`` of each.

    Args:
        normal: (n,) margins of the normal candidates.
        anomalous: (m,) margins of the anomalous candidates.
        count: wanted of each kind.
        rng: chooses within each bin.

    Raises:
        TaskError: when fewer than 250 of each kind can be matched.
    """
    edges = np.quantile(np.concatenate([normal, anomalous]), np.linspace(0, 1, BINS + 1)[1:-1])
    pairs: list[tuple[int, int]] = []
    for bin_ in range(BINS):
        left, right = (
            rng.permutation(np.flatnonzero(np.searchsorted(edges, values, side="right") == bin_))
            for values in (normal, anomalous)
        )
        pairs += zip(left.tolist(), right.tolist())  # as many as the kind with fewer has
    if len(pairs) < FEWEST:
        raise TaskError(
            f"only {len(pairs)} normal and anomalous test inputs have matching output margins",
            needed=f"{FEWEST} of each",
            causes=["the model is far surer of its answer on one of the two kinds"],
            tries=["another seed"],
        )
    chosen = np.array(pairs, dtype=np.int64)[rng.permutation(len(pairs))[:count]]
    return chosen[:, 0], chosen[:, 1]
