"""Quantum entropy scores as the papers write them: inverse root, matrix exponential, loops over rows."""

import numpy as np
from scipy.linalg import expm, sqrtm
from sklearn.covariance import LedoitWolf


def scores(trusted, untrusted, new, alpha):
    mean, scale = trusted.mean(axis=0), trusted.std(axis=0)
    Z = (trusted - mean) / scale
    inverse_root = np.linalg.inv(np.real(sqrtm(LedoitWolf(assume_centered=True).fit(Z).covariance_)))
    d = len(mean)
    S = np.zeros((d, d))
    for x in untrusted:
        z = inverse_root @ ((x - mean) / scale)
        S += np.outer(z, z) / len(untrusted)
    norm = max(abs(np.linalg.eigvalsh(S)))
    Q = expm(alpha * (S - np.eye(d)) / (norm - 1)) if norm > 1 else np.eye(d)
    found = []
    for x in new:
        z = inverse_root @ ((x - mean) / scale)
        found.append(z @ Q @ z / np.trace(Q))
    return np.array(found)


def unwhitened(trusted, untrusted, new, alpha=4.0):
    """A published implementation's mistake: whitened rows against the pool's covariance in raw coordinates."""
    mean = trusted.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(trusted.T))
    S = np.cov(untrusted.T)
    Q = expm(alpha * S / np.linalg.eigvalsh(S)[-1])
    Z = (new - mean) @ (vectors / np.sqrt(values))
    return np.array([z @ Q @ z for z in Z])
