"""Edge attribution per input as the papers define it: one input, one donor and one edge at a time, in plain loops."""

import math

from tests.twins import edges


def aligned(values, length):
    """A donor's values (positions, width) for a row of another length: same end, and again from it where too short."""
    own = len(values)
    return values[[own - 1 - (length - 1 - position) % own for position in range(length)]]


def one_donor(model, row, donor, steps):
    """Edge -> sum over positions of (donor - clean) times the gradient (Syed et al. 2023; Hanna et al. 2024)."""
    (logits, clean), (_, other) = edges.forward(model, row), edges.forward(model, donor)
    top = int(logits.argmax())
    gap = {sender: aligned(other[sender], len(row)) - clean[sender] for sender in clean}
    total = {}
    for k in range(1, steps + 1):
        point = clean["input"] + (1 - k / steps) * gap["input"]
        slopes = edges.gradients(model, row, top, lambda s, v, point=point: point if s == "input" else v)
        for (s, r), slope in slopes.items():
            total[s, r] = total.get((s, r), 0.0) + float((gap[s] * slope).sum().detach()) / steps
    # Keys and values that heads share are one receiver, listed once for every head.
    return total


def scores(model, row, donors, steps=1):
    """Edge -> mean over the donors."""
    found = [one_donor(model, row, donor, steps) for donor in donors]
    return {edge: sum(one[edge] for one in found) / len(found) for edge in found[0]}


def usual(tables):
    """Edge -> (mean size, mean, standard deviation) over inputs."""
    found = {}
    for edge in tables[0]:
        values = [table[edge] for table in tables]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        found[edge] = sum(map(abs, values)) / len(values), mean, math.sqrt(variance)
    return found


def support(known, share):
    """The fewest edges that carry a share of the size, the largest first."""
    everything, carried, found = sum(size for size, _, _ in known.values()), 0.0, []
    for edge in sorted(known, key=lambda edge: -known[edge][0]):
        if carried >= share * everything:
            break
        carried += known[edge][0]
        found.append(edge)
    return found


def summary(table, known, inside):
    """Share outside the support, largest |z| outside and inside, entropy of the shares, and the total."""
    floor = 0.01 * sum(size for size, _, _ in known.values()) / len(known)
    total = sum(abs(value) for value in table.values())
    outside, loudest, entropy = 0.0, {True: 0.0, False: 0.0}, 0.0
    for edge, value in table.items():
        share = abs(value) / total
        entropy -= share * math.log(share) if share > 0 else 0.0
        z = abs(value - known[edge][1]) / max(known[edge][2], floor)
        loudest[edge in inside] = max(loudest[edge in inside], z)
        outside += 0.0 if edge in inside else share
    return [outside, loudest[False], loudest[True], entropy, total]
