"""Mahalanobis distance with shrinkage as the papers write it: loops over rows, columns and entries."""

import numpy as np


def standardise(X):
    n, d = len(X), len(X[0])
    mean = [sum(row[j] for row in X) / n for j in range(d)]
    scale = [(sum((row[j] - mean[j]) ** 2 for row in X) / n) ** 0.5 for j in range(d)]
    return mean, scale, [[(row[j] - mean[j]) / scale[j] for j in range(d)] for row in X]


def covariance_of(Z):
    """Second moments of rows whose mean is zero."""
    n, d = len(Z), len(Z[0])
    return np.array([[sum(z[j] * z[k] for z in Z) / n for k in range(d)] for j in range(d)])


def squared_norm(A):
    return sum(a * a for row in A for a in row)


def ledoit_wolf(Z):
    """Ledoit and Wolf 2004, section 3.2: rho = b^2 / d^2."""
    S = covariance_of(Z)
    n, p = len(Z), len(S)
    m = sum(S[j][j] for j in range(p)) / p
    d2 = squared_norm(S - m * np.eye(p)) / p
    b2 = sum(squared_norm(np.outer(z, z) - S) / p for z in Z) / n**2
    return min(b2, d2) / d2 if d2 else 0.0


def oas(Z):
    """Chen et al. 2010, equation 23, without the terms in 2/p (as scikit-learn has it)."""
    S = covariance_of(Z)
    n, p = len(Z), len(S)
    trace = sum(S[j][j] for j in range(p))
    over = squared_norm(S) + trace**2
    under = (n + 1) * (squared_norm(S) - trace**2 / p)
    return min(1.0, over / under) if under else 1.0


RULES = {"ledoit-wolf": ledoit_wolf, "oas": oas, "empirical": lambda Z: 0.0}


def precision_of(Z, covariance, rho=None):
    S = covariance_of(Z)
    if covariance == "diagonal":
        return np.diag([1 / S[j][j] for j in range(len(S))])
    if covariance == "low-rank":
        return low_rank(S, 2)
    rho = RULES[covariance](Z) if rho is None else rho
    return np.linalg.inv((1 - rho) * S + rho * np.eye(len(S)))


def low_rank(S, rank):
    """Tipping and Bishop 1999: the largest eigenvalues, and the mean of the others in every other direction."""
    values, vectors = np.linalg.eigh(S)
    values = sorted(zip(values, vectors.T), key=lambda pair: -pair[0])
    noise = sum(value for value, _ in values[rank:]) / (len(S) - rank)
    model = noise * np.eye(len(S))
    for value, vector in values[:rank]:
        model += (value - noise) * np.outer(vector, vector)
    return np.linalg.inv(model)


def quadratic(P, r):
    return sum(r[j] * P[j][k] * r[k] for j in range(len(r)) for k in range(len(r)))


def distances(trusted, rows, covariance):
    mean, scale, Z = standardise(trusted)
    P = precision_of(Z, covariance)
    return np.array([quadratic(P, [(x - m) / s for x, m, s in zip(row, mean, scale)]) for row in rows])


def left_out(trusted, covariance):
    """Each row's distance from a refit on all others, with the units and the shrinkage of all."""
    _, _, Z = standardise(trusted)
    rho = RULES[covariance](Z) if covariance != "diagonal" else None
    found = []
    for i in range(len(Z)):
        others = [z for j, z in enumerate(Z) if j != i]
        mean = np.mean(others, axis=0)
        P = precision_of([np.asarray(z) - mean for z in others], covariance, rho)
        found.append(quadratic(P, np.asarray(Z[i]) - mean))
    return np.array(found)
