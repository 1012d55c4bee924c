"""Charts as plain data: histograms and curves in shares of the plot, which the page draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from causalmad.evaluation.metrics import auroc

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_BINS, _SKEWED, _POINTS = 40, 8.0, 200


@dataclass(frozen=True)
class Bar:
    """A bar, in shares of the plot from its lower left corner; ``kind`` names its colour, ``text`` says what it is."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    text: str


@dataclass(frozen=True)
class Line:
    """A line through points (x, y), in shares of the plot from its lower left corner."""

    points: tuple[tuple[float, float], ...]
    kind: str
    text: str


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: what it shows.
        caption: what to read off it, in a sentence.
        x_label: quantity and unit along x.
        y_label: quantity and unit along y.
        bars: its bars.
        lines: its lines.
        x_ticks: (share of the width, text).
        y_ticks: (share of the height, text).
        legend: (kind, text) of what has a colour.
    """

    title: str
    caption: str
    x_label: str
    y_label: str
    bars: tuple[Bar, ...]
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    legend: tuple[tuple[str, str], ...] = ()


def score_histogram(scores: Floats, flags: Flags, labels: Flags | None) -> Chart:
    """How the scores lie, by flag or, where they are known, by label; with the lowest score that is flagged."""
    finite = scores[np.isfinite(scores)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    high = high if high > low else low + (abs(low) or 1.0)
    logarithmic = low > 0 and high / low > _SKEWED
    place = _Scale(low, high, logarithmic)
    which = flags if labels is None else labels
    names = ("not flagged", "flagged") if labels is None else ("normal", "anomalous")
    groups = [scores[np.logical_not(which)], scores[which]]
    bins = min(_BINS, max(10, int(2 * len(scores) ** 0.5)))
    bars, most = _stacked(groups, ("a", "b"), names, place, bins)
    threshold = lowest_flagged(scores, flags)
    caption = "No input is flagged."
    lines: tuple[Line, ...] = ()
    if threshold is not None and np.isfinite(threshold):
        caption = f"Flagged from a score of {threshold:.4g} on (dashed line)."
        lines = (Line(((place(threshold), 0), (place(threshold), 1)), "threshold", f"flagged from {threshold:.4g} on"),)
    elif threshold is not None:
        caption = "Only infinite scores are flagged."
    elif flags.any():
        caption = "No single score divides the flagged inputs from the others: p-values compare like with like."
    lost = len(scores) - len(finite)
    return Chart(
        "Anomaly scores",
        caption + (f" {lost} infinite scores are not drawn." if lost else ""),
        "score (logarithmic)" if logarithmic else "score",
        "inputs",
        bars,
        lines,
        place.ticks(),
        _Scale(0, most, False).ticks(4),
        (("a", names[0]), ("b", names[1])),
    )


def lowest_flagged(scores: Floats, flags: Flags) -> float | None:
    """The score from which on every input is flagged and below which none is, where there is one."""
    if not flags.any() or (not flags.all() and scores[flags].min() <= scores[~flags].max()):
        return None
    return float(scores[flags].min())


def roc(labels: Flags, scores: Floats) -> Chart:
    """True flags against false flags, over all thresholds."""
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(labels, np.nan_to_num(scores))
    chosen = np.unique(np.linspace(0, len(false) - 1, min(_POINTS, len(false))).round().astype(int))
    area = auroc(labels, scores)
    curve = tuple((float(false[i]), float(true[i])) for i in chosen)
    ticks = tuple((share, f"{share:g}") for share in (0.0, 0.25, 0.5, 0.75, 1.0))
    return Chart(
        f"Separation: AUROC {area:.3f}",
        f"What share of {int(labels.sum())} anomalous and of {int((~labels).sum())} normal inputs lies above each "
        "score; the diagonal is chance.",
        "share of normal",
        "share of anomalous",
        (),
        (Line(((0, 0), (1, 1)), "chance", "chance"), Line(curve, "curve", f"AUROC {area:.3f}")),
        ticks,
        ticks,
    )


def p_histogram(normal: Floats, alpha: float) -> Chart:
    """P-values of fresh normal inputs, which are about uniform where they are like the trusted ones."""
    share = float((normal <= alpha).mean())
    place = _Scale(0, 1, False)
    bars, most = _stacked([normal], ("a",), ("normal",), place, 20)
    level = len(normal) / 20 / most
    return Chart(
        "P-values of normal inputs",
        f"{share:.1%} of {len(normal):,} fresh normal inputs have p <= {alpha:g}; of inputs like the trusted ones at "
        f"most {alpha:.1%} do, on average. The dashed line is uniform.",
        "p-value",
        "inputs",
        bars,
        (Line(((0, level), (1, level)), "threshold", "uniform"),),
        place.ticks(),
        _Scale(0, most, False).ticks(4),
    )


@dataclass(frozen=True)
class _Scale:
    """From a quantity to shares of an axis."""

    low: float
    high: float
    logarithmic: bool

    def __call__(self, value: float) -> float:
        if not self.logarithmic:
            return (value - self.low) / (self.high - self.low)
        return math.log(value / self.low) / math.log(self.high / self.low)

    def edges(self, bins: int) -> Floats:
        if self.logarithmic:
            return np.geomspace(self.low, self.high, bins + 1)
        return np.linspace(self.low, self.high, bins + 1)

    def ticks(self, count: int = 5) -> tuple[tuple[float, str], ...]:
        """Round numbers on the axis: 1, 2 or 5 times a power of ten."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            wide = self.high / self.low > 200
            values = [m * 10.0**k for k in powers for m in ((1,) if wide else (1, 2, 5))]
        else:
            rough = (self.high - self.low) / count
            power = 10.0 ** math.floor(math.log10(rough))
            step = power * min((1, 2, 5, 10), key=lambda m: abs(m * power - rough))
            first = math.ceil(self.low / step)
            values = [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]
        inside = [value for value in values if self.low * (1 - 1e-12) <= value <= self.high * (1 + 1e-12) or value == 0]
        return tuple((self(value), f"{value:g}") for value in inside if 0 <= self(value) <= 1.0001)


def _stacked(
    groups: list[Floats], kinds: tuple[str, ...], names: tuple[str, ...], place: _Scale, bins: int
) -> tuple[tuple[Bar, ...], int]:
    """Bars of all groups above each other, and the count at the top of the plot."""
    edges = place.edges(bins)
    # Rounding of the outer edges must not lose the smallest or the largest value.
    counts = [np.histogram(np.clip(one[np.isfinite(one)], edges[0], edges[-1]), edges)[0] for one in groups]
    most = max(int(np.sum(counts, axis=0).max()), 1)
    found = []
    for i in range(bins):
        base = 0
        for kind, name, count in zip(kinds, names, counts):
            if number := int(count[i]):
                text = f"{number} {name}: {edges[i]:.4g} to {edges[i + 1]:.4g}"
                found.append(Bar(i / bins, base / most, 1 / bins, number / most, kind, text))
                base += number
    return tuple(found), most
