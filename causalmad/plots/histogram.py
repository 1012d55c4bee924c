"""Histogram of anomaly scores, with what is flagged and where the threshold lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.errors import InputsError
from causalmad.plots.canvas import INK, KEY, PALE, RED, axes, bare, titled

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_HEAVY = 50  # a score this many times as far from the usual ones as is usual calls for a logarithmic axis


def histogram(
    scores: Floats,
    flags: Flags,
    threshold: float | None,
    title: str,
    labels: npt.ArrayLike | None = None,
    ax: Any = None,
) -> Any:
    """The axes with the histogram.

    Scores with a long tail get a logarithmic axis, unless the axes that are given have a scale of their own. An edge of
    the bins lies on the threshold.

    Args:
        scores: (n,) anomaly scores.
        flags: (n,) whether each is flagged.
        threshold: scores above it are flagged; None where there is no such number.
        title: what stands above, with the level.
        labels: (n,) True = anomalous: then either kind has a histogram of its own, with the AUROC in the legend.
        ax: matplotlib axes; new ones without.

    Raises:
        InputsError: when the labels are not one of two values for each score.
    """
    kinds = None if labels is None else _kinds(labels, len(scores))
    ax = axes(ax, (6.4, 3.6))
    finite = np.isfinite(scores)
    if ax.get_xscale() == "linear":
        usual = ~flags if kinds is None else ~kinds
        _stretch(ax, scores[finite], scores[finite & usual])
    edges = _edges(ax, scores[finite], threshold)
    beyond = int((~finite).sum())
    if kinds is None:
        parts = [scores[finite & ~flags], scores[finite & flags]]
        names = [f"not flagged ({int((~flags).sum())})", f"flagged ({int(flags.sum())})"]
        ax.hist(parts, edges, stacked=True, color=[PALE, RED], label=names, edgecolor="white", linewidth=0.4)
        ax.set_ylabel("inputs")
        ax.yaxis.get_major_locator().set_params(integer=True)
        heading = None
    else:
        for name, which, look in (
            ("normal", ~kinds, {"color": PALE, "edgecolor": INK}),
            ("anomalous", kinds, {"facecolor": (*_rgb(RED), 0.3), "edgecolor": RED, "hatch": "///"}),
        ):
            some = scores[finite & which]
            share = np.full(len(some), 1 / max(int(which.sum()), 1))
            ax.hist(some, edges, weights=share, histtype="stepfilled", label=f"{name} ({int(which.sum())})", **look)
        ax.set_ylabel("share of the kind")
        heading = _auroc(scores, kinds)
    if threshold is not None and np.isfinite(threshold):
        ax.axvline(threshold, color=INK, linestyle="--", linewidth=1.2, label=f"threshold {threshold:.4g}")
    ax.set_xlabel("anomaly score" + (f" ({beyond} infinite scores are not drawn)" if beyond else ""))
    titled(ax, title)
    ax.legend(title=heading, title_fontsize="small", alignment="left", **KEY)
    bare(ax)
    return ax


def _kinds(labels: npt.ArrayLike, count: int) -> Flags:
    known = np.asarray(labels)
    if known.shape != (count,) or not np.isin(known, (0, 1)).all():
        raise InputsError(
            f"labels of shape {known.shape} and dtype {known.dtype} for {count} scores",
            needed="True = anomalous or False = normal for every input",
        )
    return known.astype(bool)


def _auroc(scores: Floats, kinds: Flags) -> str | None:
    """The AUROC in words; none where only one kind is there."""
    from scipy.stats import rankdata

    odd = int(kinds.sum())
    if odd in (0, len(kinds)):
        return None
    above = float(rankdata(scores)[kinds].sum()) - odd * (odd + 1) / 2  # Mann and Whitney's U; takes infinite scores
    return f"AUROC {above / (odd * (len(kinds) - odd)):.3f}"


def _stretch(ax: Any, scores: Floats, usual: Floats) -> None:
    """A logarithmic axis where some scores lie much further from the usual ones than these from each other."""
    usual = usual if len(usual) else scores
    if not len(scores):
        return
    spread = float(np.median(np.abs(usual - np.median(usual))))
    if float(np.abs(scores - np.median(usual)).max()) <= _HEAVY * spread or not spread:
        return
    if scores.min() > 1e-3 * abs(float(np.median(usual))):
        ax.set_xscale("log")
    else:
        ax.set_xscale("symlog", linthresh=float(np.median(np.abs(usual))) or 1.0)


def _edges(ax: Any, scores: Floats, threshold: float | None) -> Floats:
    """Edges of the bins, evenly spaced on the axis, one of them on the threshold."""
    scale = ax.xaxis.get_transform()
    known = scale.transform(scores) if len(scores) else np.zeros(1)
    known = known[np.isfinite(known)]  # a caller's logarithmic axis has no place for scores below zero
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    count = min(max(len(np.histogram_bin_edges(known, "auto")) - 1, 12), 60)
    width = (high - low) / count or 1.0
    start = low if threshold is None else float(scale.transform(np.array([threshold]))[0])
    start = start if np.isfinite(start) else low
    steps = np.arange(np.floor((low - start) / width), np.floor((high - start) / width) + 2)
    edges: Floats = scale.inverted().transform(start + width * steps)
    edges[0] = min(edges[0], scores.min(initial=edges[0]))  # rounding loses no input
    edges[-1] = max(edges[-1], scores.max(initial=edges[-1]))
    return edges


def _rgb(colour: str) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb

    return to_rgb(colour)
