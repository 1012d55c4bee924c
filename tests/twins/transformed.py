"""Normal scores, signed logarithms and robust units of one column, value by value."""

import itertools
import math
import statistics


def rank(trusted, x):
    """Normal score of the middle rank, straight lines between, and through the median outside."""
    n = len(trusted)
    normal = statistics.NormalDist().inv_cdf

    def level(value):
        below, equal = sum(t < value for t in trusted), sum(t == value for t in trusted)
        return normal((below + equal / 2) / n)

    values = sorted(set(trusted))
    median = statistics.median(trusted)
    if x < values[0]:
        return level(values[0]) * (median - x) / (median - values[0])
    if x > values[-1]:
        return level(values[-1]) * (x - median) / (values[-1] - median)
    for a, b in itertools.pairwise(values):
        if a <= x <= b:
            return level(a) + (level(b) - level(a)) * (x - a) / (b - a)
    return level(x)


def signed_log(trusted, x):
    unit = statistics.median(abs(t) for t in trusted if t)
    return math.copysign(math.log(1 + abs(x) / unit), x)


def robust(trusted, x):
    median = statistics.median(trusted)
    return (x - median) / (1.4826 * statistics.median(abs(t - median) for t in trusted))
