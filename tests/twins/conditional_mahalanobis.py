"""Distance of residuals of a ridge, with every leave-one-out fit and every fold fitted for itself."""

import numpy as np

from tests.twins.mahalanobis import distances, standardise


def ridge(c, f, penalty):
    """Slopes and intercept of least squares with the squared slopes times the penalty; the intercept is free."""
    mean_c, mean_f = np.mean(c, axis=0), np.mean(f, axis=0)
    c, f = c - mean_c, f - mean_f
    slopes = np.linalg.solve(c.T @ c + penalty * np.eye(c.shape[1]), c.T @ f)
    return slopes, mean_f - mean_c @ slopes


def left_out_error(c, f, penalty):
    error = 0.0
    for i in range(len(c)):
        slopes, intercept = ridge(np.delete(c, i, 0), np.delete(f, i, 0), penalty)
        error += ((f[i] - c[i] @ slopes - intercept) ** 2).sum()
    return error


def scores(trusted, conditions, rows, fold):
    mean, scale, unit = standardise(trusted)
    unit, new = np.array(unit), (rows - np.array(mean)) / np.array(scale)
    c, f = unit[:, conditions], unit[:, ~conditions]
    penalty = min((len(c) * 10.0**power for power in range(-4, 4)), key=lambda one: left_out_error(c, f, one))
    residuals = np.empty_like(f)
    for i in range(len(c)):
        seen = fold != fold[i]
        slopes, intercept = ridge(c[seen], f[seen], penalty)
        residuals[i] = f[i] - c[i] @ slopes - intercept
    slopes, _ = ridge(c, f, penalty)
    return distances(residuals, new[:, ~conditions] - new[:, conditions] @ slopes, "ledoit-wolf")
