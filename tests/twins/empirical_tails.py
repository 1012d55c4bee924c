"""Empirical tails and the Cauchy combination, number by number."""

import math


def tail(values, x, side):
    """Upper (side 1) or lower (side -1) tail probability of x, continued beyond the range."""
    values, x = sorted(side * v for v in values), side * x
    n = len(values)
    p = (1 + sum(v >= x for v in values)) / (n + 1)
    if x > values[-1]:
        count = max(1, round(0.1 * n))
        start = values[-count - 1]
        unit = sum(v - start for v in values[-count:]) / count
        p = 1 / (n + 1) / (1 + (x - values[-1]) / unit)
    return p


def scores(trusted, rows, two_sided=True):
    n, d = len(trusted), len(trusted[0])
    found = []
    for row in rows:
        total = 0.0
        for j, x in enumerate(row):
            values = [float(t[j]) for t in trusted]
            p = tail(values, float(x), 1)
            if two_sided:
                p = min(1.0, 2 * min(p, tail(values, float(x), -1)))
            total += math.tan((0.5 - min(p, 1 - 1 / (n + 1))) * math.pi) / d
        found.append(total)
    return found
