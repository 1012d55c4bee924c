"""Confidence of one vector of logits, number by number."""

import math


def confidence(logits):
    """log of the largest probability, energy, margin, entropy."""
    logits = [float(value) for value in logits]
    whole = math.log(sum(math.exp(value) for value in logits))
    shares = [math.exp(value - whole) for value in logits]
    top = logits.index(max(logits))
    rest = math.log(sum(math.exp(value) for i, value in enumerate(logits) if i != top))
    return [logits[top] - whole, -whole, logits[top] - rest, -sum(p * math.log(p) for p in shares)]
