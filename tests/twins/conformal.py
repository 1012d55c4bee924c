"""Conformal p-values by counting, and the law of the number flagged by integration."""

import math


def p_value(calibration, score):
    count = 1
    for other in calibration:
        if other >= score:
            count += 1
    return count / (len(calibration) + 1)


def share_flagged_law(n, m, k):
    """P(j of m flagged), j = 0..m: a binomial whose probability is Beta(k, n + 1 - k), by gamma functions."""
    a, b = k, n + 1 - k

    def log_beta(x, y):
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    return [math.comb(m, j) * math.exp(log_beta(j + a, m - j + b) - log_beta(a, b)) for j in range(m + 1)]
