"""Calibrators by counting and by the formulas as they stand, in plain loops."""

import math

from tests.twins import conformal


def simes(n, delta):
    """b_1..b_n, by the products themselves."""
    h = max(1, n // 2)
    found = []
    for k in range(1, n + 1):
        i = n + 1 - k
        product = 1.0
        for step in range(h):
            product *= max(i - step, 0) / (n - step)
        found.append(1 - delta ** (1 / h) * product ** (1 / h))
    return found


def asymptotic(n, delta):
    loglog = math.log(math.log(n))
    c = -math.log(-math.log(1 - delta)) + 2 * loglog + 0.5 * math.log(loglog) - 0.5 * math.log(math.pi)
    c /= math.sqrt(2 * loglog)
    return [i / n + c * math.sqrt(i * (n - i)) / (n * math.sqrt(n)) for i in range(1, n + 1)]


def dkwm(n, delta):
    return [i / n + math.sqrt(math.log(2 / delta) / (2 * n)) for i in range(1, n + 1)]


def within(calibration, labels, score, label):
    """A Mondrian p-value: conformal, among the scores of the same label."""
    return conformal.p_value([s for s, own in zip(calibration, labels) if own == label], score)


def weighted(calibration, weights, score, weight):
    above = sum(w for s, w in zip(calibration, weights) if s >= score)
    return (above + weight) / (sum(weights) + weight)


def cross(calibration, folds, scores):
    """Scores of one input under every fold's reference."""
    count = 1
    for own, fold in zip(calibration, folds):
        if own >= scores[fold]:
            count += 1
    return count / (len(calibration) + 1)


def step_up(p_values, alpha, share=1.0, harmonic=False):
    """Benjamini and Hochberg's: which are flagged."""
    m = len(p_values)
    divide = sum(1 / j for j in range(1, m + 1)) if harmonic else 1.0
    order = sorted(range(m), key=lambda i: p_values[i])
    last = 0
    for k in range(1, m + 1):
        if p_values[order[k - 1]] <= alpha * k / (m * share * divide):
            last = k
    return [i in order[:last] for i in range(m)]


def e_step_up(e_values, alpha):
    m = len(e_values)
    order = sorted(range(m), key=lambda i: -e_values[i])
    last = 0
    for k in range(1, m + 1):
        if e_values[order[k - 1]] >= m / (k * alpha):
            last = k
    return [i in order[:last] for i in range(m)]


def capital(p_values, powers, steps, last_start):
    """The mixture over bets and starting steps, one product at a time."""

    def unplaced(steps):
        return 1 / math.log2(steps + 2)

    def power_bet(power):
        return lambda p: power * p ** (power - 1)

    def step_bet(border, share):
        return lambda p: 1 - share + (share / border if p <= border else 0)

    bets = [power_bet(power) for power in powers] + [step_bet(*step) for step in steps]
    total = unplaced(len(p_values))
    for start in range(last_start):
        for bet in bets:
            stake = (unplaced(start) - unplaced(start + 1)) / len(bets)
            for p in p_values[start:]:
                stake *= bet(p)
            total += stake
    return total
