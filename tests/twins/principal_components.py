"""Distance in the leading components plus residual energy, component by component and row by row."""

import numpy as np

from tests.twins.mahalanobis import standardise


def basis(Z, k):
    Z = np.array(Z)
    centred = Z - Z.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / (len(Z) - 1))
    order = sorted(range(len(values)), key=lambda j: -values[j])[:k]
    return [(values[j], vectors[:, j]) for j in order]


def energy(z, components):
    rest = np.array(z)
    for _, vector in components:
        rest = rest - (z @ vector) * vector
    return float(rest @ rest)


def scores(trusted, rows, k, fold):
    mean, scale, Z = standardise(trusted)
    Z = np.array(Z)
    left_over = []
    for i, z in enumerate(Z):
        seen = Z[fold != fold[i]]
        left_over.append(energy(z - seen.mean(axis=0), basis(seen, k)))
    m = sum(left_over) / len(left_over)
    components = basis(Z, k)
    found = []
    for row in rows:
        z = np.array([(x - a) / s for x, a, s in zip(row, mean, scale)])
        found.append(sum((z @ vector) ** 2 / value for value, vector in components) + energy(z, components) / m)
    return np.array(found)
