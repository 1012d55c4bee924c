"""Mutual interchange as it is defined: one input, one partner and one site at a time, with plain hooks."""

import hashlib

from tests.twins.exact_ablation import edit_of
from tests.twins.resampling_profile import divergence, log_probabilities, margin, run


def top(logits):
    return int(logits.argmax())


def like(row_logits, own, trusted, draws):
    """Partners of the same class by distance of margins, then others by divergence; trusted: (digest, logits)."""
    mine = top(row_logits)
    same, others = [], []
    for place, (digest, logits) in enumerate(trusted):
        if digest == own:
            continue
        if top(logits) == mine:
            same.append((abs(margin(logits, mine) - margin(row_logits, mine)), place))
        else:
            others.append((divergence(row_logits, logits), place))
    order = [place for _, place in sorted(same)] + [place for _, place in sorted(others)]
    return [order[i % len(order)] for i in range(draws)]


def another(row_logits, own, trusted, draws, seed):
    """Partners of another class, by a hash of the seed, the input's content and the number of the draw."""
    mine = top(row_logits)
    found = [place for place, (digest, logits) in enumerate(trusted) if top(logits) != mine and digest != own]
    if not found:
        far = sorted(
            (-divergence(row_logits, logits), p) for p, (digest, logits) in enumerate(trusted) if digest != own
        )
        return [far[i % len(far)][1] for i in range(draws)]
    found.sort(key=lambda place: trusted[place][0])
    drawn = []
    for draw in range(draws):
        key = hashlib.blake2b(f"{seed}:{own}:another:{draw}".encode(), digest_size=8).digest()
        drawn.append(found[int.from_bytes(key, "big") % len(found)])
    return drawn


def swapped(model, receiver, giver, path, features, last):
    """Logits of the receiver with the giver's features there: at the last token, or of the whole row."""
    positions = [len(receiver) - 1] if last else None
    return run(model, receiver, [edit_of(model, receiver, giver, path, "output", features, positions)])


def columns(model, row, likes, others, path, features, last):
    """The six columns of a site."""
    clean = run(model, row)
    mine = top(clean)
    total = [0.0] * 6
    for partner in likes:
        theirs = run(model, partner)
        given = swapped(model, row, partner, path, features, last)
        into = swapped(model, partner, row, path, features, last)
        found = [
            divergence(clean, given),
            margin(given, mine) - margin(clean, mine),
            divergence(theirs, into),
            margin(into, top(theirs)) - margin(theirs, top(theirs)),
            log_probabilities(into)[mine],
        ]
        for i, value in enumerate(found):
            total[i] += value / len(likes)
    for partner in others:
        into = swapped(model, partner, row, path, features, last)
        before = log_probabilities(run(model, partner))[mine]
        total[5] += (log_probabilities(into)[mine] - before) / len(others)
    return total
