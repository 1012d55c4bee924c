"""The likelihood ratio of two Gaussians by scipy's densities, in standardised columns."""

import numpy as np
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf_shrinkage


def gaussian(rows):
    """A Gaussian with the Ledoit-Wolf covariance of rows: shrunk in units of each column's own deviation."""
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    Z = (rows - mean) / scale
    rho = ledoit_wolf_shrinkage(Z, assume_centered=True)
    correlation = (1 - rho) * Z.T @ Z / len(Z) + rho * np.eye(len(scale))
    return multivariate_normal(mean, correlation * np.outer(scale, scale))


def scores(trusted, untrusted, new):
    both = np.concatenate([trusted, untrusted])
    mean, scale = both.mean(axis=0), both.std(axis=0)
    Z = (both - mean) / scale
    _, vectors = np.linalg.eigh(Z.T @ Z)
    ours, theirs, rows = (((table - mean) / scale) @ vectors for table in (trusted, untrusted, new))
    return gaussian(theirs).logpdf(rows) - gaussian(ours).logpdf(rows)
