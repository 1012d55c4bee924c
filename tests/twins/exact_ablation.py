"""Exact ablation as it is defined: one or two parts of one input from one donor at a time, with plain hooks."""

from tests.twins.resampling_profile import divergence, margin, read, run, same_place


def edit_of(model, row, donor, path, side, features, positions):
    """An edit that takes some features at some positions from a donor; without positions of the row as it is."""
    values = read(model, donor, path, side)

    def edit(value):
        value = value.clone()
        if positions is None:
            value[0, ..., features] = values[..., features]
            return value
        for position in positions:
            value[0, position, features] = values[same_place(position, len(row), len(donor)), features]
        return value

    return path, side, edit


def effect(model, row, donors, units):
    """(mean KL, mean change of the margin) over donors, all units replaced at once.

    Units are (path, side, features, positions of the row).
    """
    clean = run(model, row)
    top = int(clean.argmax())
    kl, change = 0.0, 0.0
    for donor in donors:
        patched = run(model, row, [edit_of(model, row, donor, *unit) for unit in units])
        kl += divergence(clean, patched) / len(donors)
        change += (margin(patched, top) - margin(clean, top)) / len(donors)
    return kl, change


def interaction(model, row, donors, first, second):
    """Both effects of a pair minus those of its two units."""
    both, a, b = (effect(model, row, donors, units) for units in ([first, second], [first], [second]))
    return tuple(both[i] - a[i] - b[i] for i in range(2))
