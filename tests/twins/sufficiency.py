"""Sufficiency and necessity of a circuit, one input and one donor at a time: resample what is outside, or inside."""

from tests.twins.resampling_profile import divergence, run
from tests.twins.scrubbing import index_of, look, patched, statistics, write


def kept(spot, datum):
    """The edit pair (note, restore) that leaves a spot's own value, as the run computes it, in place."""
    own = {}

    def where():
        return (0, ..., spot.cut) if spot.position is None else (0, index_of(spot, datum), spot.cut)

    def note(value):
        own["value"] = value[where()].clone()
        return value

    def restore(value):
        value = value.clone()
        value[where()] = own["value"]
        return value

    return (spot.path, spot.side, note), (spot.path, spot.side, restore)


def sufficiency(model, datum, donor, circuit, everything):
    """Logits when every part of the model but the circuit has the donor's values."""
    pairs = [kept(spot, datum) for spot in circuit]
    values = look(model, donor, everything)
    writes = [write(spot, values[spot], datum) for spot in everything]
    return run(model, datum.row, [*(note for note, _ in pairs), *writes, *(restore for _, restore in pairs)])


def necessity(model, datum, donor, circuit):
    """Logits when the circuit alone has the donor's values."""
    return patched(model, datum, look(model, donor, circuit))


def columns(model, datum, donors, circuits, everything):
    """All columns of one input, for circuits of several sizes."""
    clean, found = run(model, datum.row), []
    for circuit in circuits:
        found += statistics(clean, [sufficiency(model, datum, donor, circuit, everything) for donor in donors])
        found += statistics(clean, [necessity(model, datum, donor, circuit) for donor in donors])
    return found


def ranking(model, data, donors_of, everything):
    """Spots by the mean divergence that resampling each alone makes, the largest first."""
    effects = {}
    for spot in everything:
        found = []
        for datum in data:
            clean = run(model, datum.row)
            for donor in donors_of(datum):
                found.append(divergence(clean, patched(model, datum, look(model, donor, [spot]))))
        effects[spot] = sum(found) / len(found)
    return sorted(everything, key=lambda spot: -effects[spot]), effects
