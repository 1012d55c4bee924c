"""EM for N(0, I) and a second Gaussian with eigenvalues of at least 1, row by row, with scipy's densities."""

import numpy as np
from scipy.stats import multivariate_normal


def steps(Y, count, start=0.2):
    """Share, mean and covariance after 0, 1, ... EM steps from the farthest rows."""
    d = len(Y[0])
    distances = [y @ y for y in Y]
    weights = [float(distance >= np.quantile(distances, 1 - start)) for distance in distances]
    found = []
    for _ in range(count + 1):
        total = sum(weights)
        mean = sum(w * y for w, y in zip(weights, Y)) / total
        covariance = sum(w * np.outer(y - mean, y - mean) for w, y in zip(weights, Y)) / total
        values, vectors = np.linalg.eigh(covariance)
        covariance = vectors @ np.diag([max(value, 1.0) for value in values]) @ vectors.T
        share = total / len(Y)
        found.append((share, mean, covariance))
        first, second = multivariate_normal(np.zeros(d)), multivariate_normal(mean, covariance)
        weights = [share * second.pdf(y) / ((1 - share) * first.pdf(y) + share * second.pdf(y)) for y in Y]
    return found


def likelihood(Y, share, mean, covariance):
    first, second = multivariate_normal(np.zeros(len(mean))), multivariate_normal(mean, covariance)
    return np.mean([np.log((1 - share) * first.pdf(y) + share * second.pdf(y)) - first.logpdf(y) for y in Y])


def log_odds(Y, share, mean, covariance):
    first, second = multivariate_normal(np.zeros(len(mean))), multivariate_normal(mean, covariance)
    return np.array([np.log(share / (1 - share)) + second.logpdf(y) - first.logpdf(y) for y in Y])
