"""The resampling profile as it is defined: one input, one unit and one donor at a time, with plain hooks.

Inputs are single rows, never padded: a vector, an image, or a sequence of token ids.
"""

import math

import torch


def run(model, row, edits=()):
    """Logits of one row (at its last token); ``edits`` are (path, side, function of the activation)."""
    handles = []
    for path, side, edit in edits:
        part = model.get_submodule(path)
        if side == "input":
            handles.append(part.register_forward_pre_hook(lambda _, args, edit=edit: (edit(args[0]), *args[1:])))
        else:

            def after(_, __, out, edit=edit):
                return (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out)

            handles.append(part.register_forward_hook(after))
    try:
        with torch.no_grad():
            tokens = not row.is_floating_point()
            return model(input_ids=row[None]).logits[0, -1].double() if tokens else model(row[None])[0].double()
    finally:
        for handle in handles:
            handle.remove()


def read(model, row, path, side):
    """The activation of one row at one place, without its batch axis."""
    seen = []

    def look(value):
        seen.append(value[0].clone())
        return value

    run(model, row, [(path, side, look)])
    return seen[0]


def same_place(position, length, donor_length):
    """Where a donor is read for a position: both are aligned at their last token, and a short donor starts again."""
    from_end = length - 1 - position
    return donor_length - 1 - from_end % donor_length


def log_probabilities(logits):
    largest = max(logits.tolist())
    total = sum(math.exp(value - largest) for value in logits.tolist())
    return [value - largest - math.log(total) for value in logits.tolist()]


def divergence(clean, patched):
    """Sum over classes of p (log p - log q)."""
    p, q = log_probabilities(clean), log_probabilities(patched)
    return max(sum(math.exp(a) * (a - b) for a, b in zip(p, q)), 0.0)


def margin(logits, top):
    """Logit of a class minus the logsumexp of the others."""
    others = [value for index, value in enumerate(logits.tolist()) if index != top]
    largest = max(others)
    return float(logits[top]) - largest - math.log(sum(math.exp(value - largest) for value in others))


def effects_of(model, row, patched_runs):
    """(mean KL, sd of it, mean change of the margin, sd of it) over the donors of one unit."""
    clean = run(model, row)
    top = int(clean.argmax())
    kl, change = [], []
    for patched in patched_runs:
        kl.append(divergence(clean, patched))
        change.append(margin(patched, top) - margin(clean, top))

    def mean(values):
        return sum(values) / len(values)

    def sd(values):
        return math.sqrt(mean([(value - mean(values)) ** 2 for value in values]))

    return mean(kl), sd(kl), mean(change), sd(change)


def own_donors(row, donors, count):
    """The first ``count`` donors; the spare, which is the last, in place of the row itself."""
    return [donors[count] if torch.equal(row, donor) else donor for donor in donors[:count]]


def input_units(model, row, donors, masks):
    """Effects of replacing parts of a row that is no sequence of tokens."""
    found = []
    for mask in masks:
        found.append(effects_of(model, row, [run(model, torch.where(mask, donor, row)) for donor in donors]))
    return found


def token_units(model, row, donors):
    """Effects of replacing one token, the last one first."""
    found = []
    for position in reversed(range(len(row))):
        runs = []
        for donor in donors:
            changed = row.clone()
            changed[position] = donor[same_place(position, len(row), len(donor))]
            runs.append(run(model, changed))
        found.append(effects_of(model, row, runs))
    return found


def site_unit(model, row, donors, path, side, features, positions):
    """Effects of replacing some features of an activation at some positions."""
    runs = []
    for donor in donors:
        values = read(model, donor, path, side)

        def edit(value, values=values, donor=donor):
            value = value.clone()
            for position in positions:
                value[0, position, features] = values[same_place(position, len(row), len(donor)), features]
            return value

        runs.append(run(model, row, [(path, side, edit)]))
    return effects_of(model, row, runs)


def ranked(effects, top):
    """``top`` largest by size, their sum, and the entropy of the shares of size."""
    order = sorted(effects, key=abs, reverse=True)
    total = sum(abs(value) for value in effects)
    shares = [abs(value) / total for value in effects] if total else []
    entropy = -sum(share * math.log(share) for share in shares if share > 0)
    return [*(order + [0.0] * top)[:top], sum(effects), entropy]


def placed(effects, width):
    """One number per position, counted from the end, and the sum of those beyond the width."""
    return [*(effects + [0.0] * width)[:width], sum(effects[width:])]


def scale(values):
    """Median size of the values that are not zero; 1 where all are."""
    sizes = sorted(abs(value) for value in values if value != 0)
    if not sizes:
        return 1.0
    half = len(sizes) // 2
    return sizes[half] if len(sizes) % 2 else (sizes[half - 1] + sizes[half]) / 2


def signed_log(value, unit):
    return math.copysign(math.log(1 + abs(value) / unit), value)
