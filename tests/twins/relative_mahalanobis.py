"""Relative Mahalanobis distance as Ren et al. 2021 write it (equations 1 to 4), with the shrinkage of the docstring."""

import numpy as np

from tests.twins.mahalanobis import ledoit_wolf, quadratic


def scores(trusted, classes, rows):
    n, d = trusted.shape
    means = {k: sum(x for x, c in zip(trusted, classes) if c == k) / sum(c == k for c in classes) for k in set(classes)}
    background = sum(trusted) / n
    centred = np.array([x - means[c] for x, c in zip(trusted, classes)])
    unit = np.array([(sum(r[j] ** 2 for r in centred) / n) ** 0.5 for j in range(d)])
    within = sum(np.outer(r / unit, r / unit) for r in centred) / n
    total = sum(np.outer((x - background) / unit, (x - background) / unit) for x in trusted) / n
    rho = ledoit_wolf([r / unit for r in centred])
    W = np.linalg.inv((1 - rho) * within + rho * np.eye(d))
    T = np.linalg.inv((1 - rho) * total + rho * np.eye(d))
    found = []
    for x in rows:
        nearest = min(quadratic(W, (x - mean) / unit) for mean in means.values())
        found.append(nearest - quadratic(T, (x - background) / unit))
    return np.array(found)
