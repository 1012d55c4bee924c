"""The dip from its definition: the nearest distribution with one mode, by linear programs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.optimize import linprog


def dip(values):
    """Least t such that a distribution with its mode at one of the points is within t of the empirical one.

    Its values at the points are variables; left of the mode it is convex, right of it concave, at the mode it may jump.
    """
    points, count = np.unique(np.asarray(values, dtype=float), return_counts=True)
    above = np.cumsum(count) / count.sum()
    below = above - count / count.sum()
    return min(_at(points, below, above, mode) for mode in range(len(points)))


def _at(points, below, above, mode):
    """Least t with the mode at one point. Variables: values (at the mode from the left), value at the mode, t."""
    size = len(points)
    rows, most = [], []

    def require(terms, bound):
        row = np.zeros(size + 2)
        for index, factor in terms:
            row[index] += factor
        rows.append(row)
        most.append(bound)

    def near(index, value):
        require([(index, 1), (size + 1, -1)], value)
        require([(index, -1), (size + 1, -1)], -value)

    for index in range(size):
        near(index, below[index])
        near(size if index == mode else index, above[index])
    require([(mode, 1), (size, -1)], 0)
    left, right = [*range(mode + 1)], [size, *range(mode + 1, size)]
    for chain, places, sign in ((left, points[: mode + 1], 1), (right, points[mode:], -1)):
        for one, two in pairwise(chain):
            require([(one, 1), (two, -1)], 0)
        for k in range(len(chain) - 2):
            width, after = places[k + 1] - places[k], places[k + 2] - places[k + 1]
            # slope of the first piece <= slope of the second, or the other way round
            terms = [(chain[k + 1], after + width), (chain[k], -after), (chain[k + 2], -width)]
            require([(index, sign * factor) for index, factor in terms], 0)
    found = linprog([0] * (size + 1) + [1], A_ub=np.array(rows), b_ub=most, bounds=[(0, 1)] * (size + 2))
    return found.fun
