"""Logs of made-up runs: scores are drawn, nothing is fitted."""

import numpy as np

from causalmad.evaluation.logs import Log
from causalmad.evaluation.metrics import auroc


def made_up(task: str, detector: str, seed: int, gap: float, count: int = 120, **options: bool) -> Log:
    """A run whose anomalies score ``gap`` standard deviations higher; inputs are the same for every detector."""
    inputs = np.random.default_rng([seed, *task.encode()])
    labels = inputs.random(count) < 0.5
    hard = inputs.standard_normal(count)  # what every detector finds hard
    own = np.random.default_rng([seed, *detector.encode(), *task.encode()]).standard_normal(count)
    scores = gap * labels + hard + 0.1 * own
    result = {
        "auroc": auroc(labels, scores),
        "average_precision": 0.5,
        "tpr_at_fpr": {"0.01": 0.1},
        "fpr_at_alpha": {"0.05": 0.04, "0.01": None},
        "fpr_interval99": {"0.05": [0.02, 0.08], "0.01": None},
        "controls": {},
    }
    content = {
        "arguments": {"task": options},
        "versions": {"causalmad": "0"},
        "fingerprints": {"model": f"{task}{seed}"},
        "result": result,
        "ids": [f"{task}:{row}" for row in range(count)],
        "labels": labels.astype(int).tolist(),
        "scores": scores.tolist(),
    }
    return Log(task, detector, seed, content)


def suite(gaps: dict[str, dict[str, float]], seeds: int = 5) -> list[Log]:
    """Logs of several detectors: detector -> task -> gap."""
    return [made_up(t, d, s, gap) for d, tasks in gaps.items() for t, gap in tasks.items() for s in range(seeds)]
