"""Causal scrubbing as Chan et al. 2022 define it: one input, one draw and one node at a time, with plain hooks.

The graph G of the definition has the raw input, the claimed sites and the output as its nodes. Whatever a claim does
not name is part of the function from a node's parents to its value.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from tests.twins.resampling_profile import divergence, margin, run, same_place

OUTPUT = "output"


class Spot(NamedTuple):
    """A part of an activation; without a position it is the whole sequence."""

    path: str
    side: str = "output"
    features: range | None = None
    position: int | str | None = None

    @property
    def cut(self):
        """The features as an index of the last axis."""
        return slice(None) if self.features is None else slice(self.features.start, self.features.stop)


class Variable(NamedTuple):
    """A node of the interpretation graph I, and through its spots its image c(node) in G."""

    spots: tuple[Spot, ...] = ()
    value: Callable | None = None
    causes: tuple[str, ...] = ()
    mechanism: Callable | None = None


class Datum(NamedTuple):
    """One input: what the model sees, and what people know of it."""

    row: torch.Tensor
    known: dict

    @property
    def tokens(self):
        return not self.row.is_floating_point()


def index_of(spot, datum):
    """Where a position lies in a datum."""
    place = int(datum.known[spot.position]) if isinstance(spot.position, str) else spot.position
    return place + len(datum.row) if place < 0 else place


def look(model, datum, spots, edits=()):
    """Spot -> (value, length of the input it comes from), in one run under edits."""
    seen = {}

    def reader(spot):
        def note(value):
            part = value[0][..., spot.cut]
            part = part[index_of(spot, datum)] if spot.position is not None and datum.tokens else part
            seen[spot] = (part.clone(), len(datum.row))
            return value

        return note

    run(model, datum.row, [*edits, *((spot.path, spot.side, reader(spot)) for spot in spots)])
    return seen


def write(spot, held, datum):
    """The edit that puts a held value into a run of a datum."""
    new, length = held

    def edit(value):
        value = value.clone()
        if not datum.tokens:
            value[0, ..., spot.cut] = new
        elif spot.position is not None:
            value[0, index_of(spot, datum), spot.cut] = new
        else:
            for position in range(len(datum.row)):
                value[0, position, spot.cut] = new[same_place(position, len(datum.row), length)]
        return value

    return spot.path, spot.side, edit


def patched(model, datum, held):
    """Logits of one datum with held values put in."""
    return run(model, datum.row, [write(spot, value, datum) for spot, value in held.items()])


def run_scrub(model, variables, choose, node, reference, path, separate=False):
    """What a node gives (logits, or spot -> value) when recomputed around a reference; None without donors.

    For each parent that the claim calls a cause: sample a datum that agrees with the reference on it, and recurse. All
    other parents (the raw input, and other claimed sites) are evaluated on one random datum, or each on its own.
    """
    causes = variables[node].causes
    if node != OUTPUT and not causes:
        return look(model, reference, variables[node].spots)
    held = {}
    for cause in causes:
        agreeing = choose.matched(cause, variables[cause].value(reference.known), f"{path}/{cause}")
        if agreeing is None:
            return None
        below = run_scrub(model, variables, choose, cause, agreeing, f"{path}/{cause}", separate)
        if below is None:
            return None
        held |= below
    random = choose.any(f"{path}/other")
    for name in variables:
        if name not in (OUTPUT, node, *causes):
            stranger = choose.any(f"{path}/other/{name}") if separate else random
            held |= look(model, stranger, variables[name].spots)
    if node == OUTPUT:
        return patched(model, random, held)
    return look(model, random, variables[node].spots, [write(spot, value, random) for spot, value in held.items()])


def statistics(clean, runs):
    """Mean and sd of the divergence and of the margin's change, and the share of flips; zeros without any run."""
    if not runs:
        return [0.0] * 5
    top = int(clean.argmax())
    kl = [divergence(clean, other) for other in runs]
    change = [margin(other, top) - margin(clean, top) for other in runs]
    flips = [float(int(other.argmax()) != top) for other in runs]
    return [mean(kl), sd(kl), mean(change), sd(change), mean(flips)]


def mean(values):
    return sum(values) / len(values)


def sd(values):
    return math.sqrt(mean([(value - mean(values)) ** 2 for value in values]))


def columns(model, variables, datum, choices, separate=False):
    """All columns of one input, one choice of donors for every draw."""
    clean = run(model, datum.row)
    every = [spot for variable in variables.values() for spot in variable.spots]
    found, failed, tried = [], 0, 0
    for name, variable in variables.items():
        if name == OUTPUT:
            continue
        donors = [choose.matched(name, variable.value(datum.known), f"claim/{name}") for choose in choices]
        runs = [patched(model, datum, look(model, d, variable.spots)) for d in donors if d is not None]
        found += statistics(clean, runs)
        failed, tried = failed + len(donors) - len(runs), tried + len(donors)
    own = look(model, datum, every)
    found += statistics(clean, [patched(model, choose.any("unclaimed"), own) for choose in choices])
    found += statistics(clean, [patched(model, datum, look(model, c.any("claimed"), every)) for c in choices])
    whole = [run_scrub(model, variables, choose, OUTPUT, datum, "whole", separate) for choose in choices]
    runs = [logits for logits in whole if logits is not None]
    failed, tried = failed + len(whole) - len(runs), tried + len(whole)
    return [*found, *statistics(clean, runs), failed / tried]


def loss_recovered(model, variables, data, choices, labels=None, separate=False):
    """(recovered, mean losses, share without donors) over a data set; ``choices[i]`` are those of datum i."""
    losses, failed, tried = {"model": [], "scrubbed": [], "random": []}, 0, 0
    for i, datum in enumerate(data):
        clean = run(model, datum.row)

        def loss(logits, clean=clean, i=i):
            if labels is None:
                return divergence(clean, logits)
            return -float(logits.log_softmax(-1)[labels[i]])

        for choose in choices[i]:
            scrubbed = run_scrub(model, variables, choose, OUTPUT, datum, "whole", separate)
            tried, failed = tried + 1, failed + (scrubbed is None)
            if scrubbed is not None:
                losses["model"].append(loss(clean))
                losses["scrubbed"].append(loss(scrubbed))
                losses["random"].append(loss(run(model, choose.any("random").row)))
    means = {name: mean(values) for name, values in losses.items()}
    recovered = (means["random"] - means["scrubbed"]) / (means["random"] - means["model"])
    return recovered, means, failed / tried
