"""Beatrix entry by entry: the Gram matrix of one input from sums over positions, its bounds from sorted lists."""

import math
from statistics import fmean, median


def entries(matrix, order):
    """Upper triangle with the diagonal of the Gram matrix of one input; ``matrix`` is a list of features."""
    found = []
    for i in range(len(matrix)):
        for j in range(i, len(matrix)):
            total = sum(a**order * b**order for a, b in zip(matrix[i], matrix[j])) / len(matrix[i])
            found.append(math.copysign(abs(total) ** (1 / order), total))
    return found


def deviations(own, trusted, width):
    """Exceedance and distance of one matrix's entries, given those of the trusted inputs it is held against."""
    middles = [median(row[k] for row in trusted) for k in range(len(own))]
    spreads = [median(abs(row[k] - middles[k]) for row in trusted) for k in range(len(own))]
    scale = fmean(abs(value) for row in trusted for value in row) or 1.0
    outside, distance = [], []
    for value, middle, spread in zip(own, middles, spreads):
        low, high = middle - width * spread, middle + width * spread
        floor = max(width * spread, 0.1 * scale)
        if value < low:
            outside.append((low - value) / max(abs(low), floor))
        elif value > high:
            outside.append((value - high) / max(abs(high), floor))
        else:
            outside.append(0.0)
        distance.append(math.log(1 + abs(value - middle) / max(spread, 1e-3 * abs(middle), 0.01 * scale)))
    return [fmean(outside), fmean(distance)]
