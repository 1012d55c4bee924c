"""Donor moments as they are defined, from a list of effects, one for each donor."""


def moments(effects, damping):
    """Mean, variance, skewness (damped), minimum and maximum of the effects of one unit."""
    count = len(effects)
    mean = sum(effects) / count
    variance = sum((value - mean) ** 2 for value in effects) / count
    third = sum((value - mean) ** 3 for value in effects) / count
    whole = (variance + damping) ** 1.5
    return [mean, variance, third / whole if whole else 0.0, min(effects), max(effects)]


def damping(units):
    """A hundredth of the mean square effect over all units of an input."""
    every = [value for effects in units for value in effects]
    return 0.01 * sum(value**2 for value in every) / len(every)


def of_class(effects, classes, wanted):
    """Mean effect of the donors of a class, or of all where there is none."""
    chosen = [value for value, label in zip(effects, classes, strict=True) if label == wanted] or effects
    return sum(chosen) / len(chosen)


def frequent(labels, donors, most):
    """The donors' classes, the most frequent among the labels of trusted inputs first."""
    return sorted(set(donors), key=lambda label: (-labels.count(label), label))[:most]
