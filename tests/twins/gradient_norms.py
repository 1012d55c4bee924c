"""Gradient norms as they are defined: one input and one unit at a time, plain loops over the entries."""

import math

from tests.twins.attribution_patching import activation, slope


def norm(entries):
    return math.sqrt(sum(float(entry) ** 2 for entry in entries.flatten()))


def norms(model, row, path, side, units, target):
    """For every unit (a function from the gradient at a place to the unit's entries) the norm of the gradient there."""
    gradient = slope(model, row, path, side, activation(model, row, path, side), target)
    return [norm(unit(gradient)) for unit in units]
