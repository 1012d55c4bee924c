"""Scores with their labels, and AUROCs of resampled inputs and model seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from causalmad.errors import InputsError

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

DRAWS = 1000


@dataclass(frozen=True, eq=False)
class Scored:
    """The scores of one detector on the test inputs of one task and seed.

    Attributes:
        labels: (n,) True = anomalous.
        scores: (n,) anomaly scores.
    """

    labels: Flags
    scores: Floats


def bootstrap_interval(one: Scored, *, seed: int = 0, draws: int = DRAWS) -> tuple[float, float]:
    """95 % percentile interval (lo, hi) of the AUROC of one model, over inputs.

    Each draw takes as many inputs of either kind as there are, with replacement. It says nothing of other models.

    Raises:
        InputsError: where there is only one kind of input.
    """
    return _percentiles(_resampled(one, draws, np.random.default_rng(seed)))


def task_draws(tasks: Sequence[Sequence[Scored]], *, seed: int = 0, draws: int = DRAWS) -> Floats:
    """(draws, tasks) mean AUROC over the resampled seeds and inputs of each task.

    Detectors that were scored on the same inputs share the draws: differences between them are paired.
    """
    rng = np.random.default_rng(seed)
    return np.stack([_means(task, draws, rng) for task in tasks], axis=1)


def _percentiles(values: Floats) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _means(seeds: Sequence[Scored], draws: int, rng: np.random.Generator) -> Floats:
    """(draws,) mean AUROC of resampled seeds and inputs."""
    if not seeds:
        raise InputsError("no seeds to draw from", needed="at least one")
    each = np.stack([_resampled(one, draws, rng) for one in seeds])
    chosen = rng.integers(0, len(seeds), (len(seeds), draws))
    means: Floats = each[chosen, np.arange(draws)].mean(0)
    return means


def _resampled(one: Scored, draws: int, rng: np.random.Generator) -> Floats:
    """(draws,) AUROC of resampled inputs, as the weighted mean of a table of who beats whom."""
    normal, odd = one.scores[~one.labels], one.scores[one.labels]
    if not len(normal) or not len(odd):
        raise InputsError("only one kind of input", needed="normal and anomalous inputs")
    wins = (odd[:, None] > normal[None, :]) + 0.5 * (odd[:, None] == normal[None, :])
    a = rng.multinomial(len(odd), np.full(len(odd), 1 / len(odd)), size=draws) / len(odd)
    b = rng.multinomial(len(normal), np.full(len(normal), 1 / len(normal)), size=draws) / len(normal)
    found: Floats = np.einsum("da,da->d", a @ wins, b)
    return found
