"""TED for one input: sort all trusted inputs by distance, layer by layer, and look for the first of its class."""

import numpy as np


def ranks(x, answer, trusted, answers, anchor, own=None):
    """Columns of one input.

    ``x`` is a list of vectors, one per layer; ``trusted`` a list of (n, d) arrays;
    ``own`` is the trusted input that it is itself.
    """
    others = [i for i in range(len(answers)) if i != own]
    same = [i for i in others if answers[i] == answer]
    orders = []
    for vector, rows in zip(x, trusted):
        distances = [np.sqrt(sum((rows[i] - vector) ** 2)) for i in others]
        orders.append([others[place] for place in np.argsort(distances, kind="stable")])
    found = []
    for order in orders:
        if not same:
            rank = len(others)
        elif anchor == "last":
            rank = order.index(next(i for i in orders[-1] if i in same))
        else:
            rank = order.index(next(i for i in order if i in same))
        found.append(np.log(1 + rank) / np.log(1 + len(others)))
    return found
