"""Groups: whether a minority of rows stands apart from the rest, and which rows that are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from diptest import diptest

from causalmad.errors import InputsError
from causalmad.references.base import as_rows

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

LEVEL = 0.01  # of the test for a group
_LEAST, _TABLED = 4, 72_000  # numbers for which the dip has known p-values
_DIRECTIONS = 10
_MOST = 1 / 3  # of the rows: what is more is no minority
_WHOLE = 0.05  # a rest with a smaller p-value falls into groups itself


def apart(rows: npt.ArrayLike) -> tuple[float, Mask]:
    """A p-value for "no minority stands apart", and which of the rows it is.

    Columns are standardised and the rows projected to their ten leading principal components: many rows that differ
    from the rest in one way make a direction of much variance (Tran, Li, Madry 2018). Each projection is tested for
    having one mode only by Hartigan's dip, and the smallest p-value is multiplied by their number. On the most
    significant one, the cut with the largest variance between its sides divides the rows. It counts where the smaller
    side has at most a third of them, and where the others hang together, that is, show no groups in the same test: data
    of many classes falls into groups everywhere, and none of them is special.

    A share s of n rows can be seen from about s = 1.5 / sqrt(n) on: 15 % of 100, 5 % of 1000.

    Args:
        rows: (n, d) finite numbers, as those of signatures are.

    Returns:
        The p-value, 1 where nothing of the kind is there, and (n,) the members; none where it is above 0.01.

    Raises:
        InputsError: where they hold NaN or infinity, which lie in no direction; the columns and rows are named.

    References:
        Hartigan, Hartigan 1985, The dip test of unimodality (Annals of Statistics 13).
        Tran, Li, Madry 2018, Spectral signatures in backdoor attacks, arXiv 1811.00636.
    """
    values = np.asarray(rows, dtype=np.float64)
    if values.ndim != 2 or values.size:
        values = as_rows(rows, what="rows", error=InputsError)
    p_value, members = _split(values)
    nobody = np.zeros(len(values), dtype=bool)
    if p_value > LEVEL:
        return p_value, nobody
    if members.mean() > _MOST or _split(values[~members])[0] <= _WHOLE:
        return 1.0, nobody
    return p_value, members


def _split(values: Floats) -> tuple[float, Mask]:
    """The p-value for one mode in all directions, and the smaller side of the cut in the most significant one."""
    found = [(*_dip(scores), scores) for scores in _directions(values).T]
    if not found:
        return 1.0, np.zeros(len(values), dtype=bool)
    most, p_value, scores = max(found, key=lambda known: known[0])
    return min(1.0, len(found) * p_value), _smaller_side(scores, most)


def _dip(scores: Floats) -> tuple[float, float]:
    """Hartigan's dip of some numbers, and its p-value against uniform ones, which dip most of all that have one mode.

    Equal numbers count as if spread over half a billionth of the range: many of them may well be the mode, such as the
    zeros of a ReLU. That adds at most 1 / 2n to the dip.
    """
    if len(scores) < _LEAST:
        return 0.0, 1.0
    found, p_value = diptest(_spread(scores[:: -(-len(scores) // _TABLED)]))
    return float(found), float(p_value)


def _directions(values: Floats) -> Floats:
    """(n, k) the rows along the leading principal components of the standardised columns."""
    # Powers of two, which change no digit: squares of very large numbers would be infinite.
    values = np.ldexp(values, -np.frexp(np.abs(values).max(0, initial=0.0))[1])
    centred = values - values.mean(0)
    unit = centred.std(0)
    varies = unit > 1e-6 * np.abs(values).max(0, initial=0.0)
    scaled = centred[:, varies] / unit[varies]
    if not scaled.size:
        return np.empty((len(values), 0))
    # Of the two Gram matrices the smaller one has the same eigenvalues.
    if scaled.shape[0] < scaled.shape[1]:
        sizes, vectors = np.linalg.eigh(scaled @ scaled.T)
        scores = vectors * np.sqrt(np.maximum(sizes, 0.0))
    else:
        sizes, vectors = np.linalg.eigh(scaled.T @ scaled)
        scores = scaled @ vectors
    leading = np.argsort(-sizes, kind="stable")[:_DIRECTIONS]
    kept: Floats = scores[:, leading[sizes[leading] > 1e-8 * sizes.max()]]
    return kept


def _smaller_side(scores: Floats, least: float) -> Mask:
    """(n,) the smaller side of the cut with the largest variance between its sides.

    Args:
        scores: (n,) numbers.
        least: share of the numbers on either side; a dip is at most half the share of a group.
    """
    ordered, count = np.sort(scores), len(scores)
    lower = np.arange(1, count)
    left = np.cumsum(ordered)[:-1]
    between = lower * (count - lower) * (left / lower - (ordered.sum() - left) / (count - lower)) ** 2
    between[np.minimum(lower, count - lower) < least * count] = -1.0
    at = int(between.argmax())
    high = scores > (ordered[at] + ordered[at + 1]) / 2
    side: Mask = high if 2 * high.sum() < count else ~high
    return side


def _spread(values: Floats) -> Floats:
    """(n,) ascending numbers, all different: places in the range, in billionths."""
    ordered = np.sort(values)
    if not len(ordered):
        return ordered
    width = ordered[-1] - ordered[0]
    place = np.round((ordered - ordered[0]) / (width or 1.0) * 1e9)
    _, count = np.unique(place, return_counts=True)
    spread: Floats = place + np.concatenate([np.arange(number) / (2 * number) for number in count])
    return spread
