"""Where reasons come from: a fitted detector at once, a detection one by one, or the lines of a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from causalmad.errors import InputsError, SiteError, SpecError
from causalmad.explanation import OWN
from causalmad.references.folded import FittedFolds
from causalmad.report.reasons import Chunk, Floats, Near
from causalmad.signatures.base import Column
from causalmad.sites import Site

if TYPE_CHECKING:
    from causalmad.detection import Detection
    from causalmad.detector import FittedDetector

SLOW = 1000  # inputs that are explained one by one
_WITH_DONORS = 500  # inputs of which donors are looked up, one by one
_CHUNK, _NEIGHBOURS, _SPARE = 512, 5, 8


def worst_first(detection: Detection) -> list[int]:
    """Rows of a detection, those flagged first, then by score."""
    return np.lexsort((-detection.scores, ~detection.flags)).tolist()  # type: ignore[no-any-return]


def at_once(detector: FittedDetector, detection: Detection) -> Iterator[Chunk] | None:
    """Reasons of all inputs in bulk; None where the reference's score is no sum over columns.

    Raises:
        SpecError: when the detection is of another detector.
    """
    if detection.provenance.get("ids") != detector.provenance["ids"]:
        raise SpecError("the detection is of another detector", needed="detection = detector.detect(...)")
    if _amounts(detector.reference, detection.signatures.values[:1]) is None:
        return None
    return _bulk(detector, detection)


def one_by_one(detection: Detection) -> Iterator[Chunk]:
    """Reasons of the 1,000 most anomalous inputs, each as :meth:`Detection.explain` gives it."""
    index = {column.name: i for i, column in enumerate(detection.signatures.columns)}
    for row in sorted(worst_first(detection)[:SLOW]):
        found = detection.reason(row)
        amounts, values = np.zeros((1, len(index))), np.zeros((1, len(index)))
        for part in found.contributions:
            amounts[0, index[part.column.name]] = part.amount
            values[0, index[part.column.name]] = part.value
        yield Chunk((row,), np.array([found.score]), amounts, values, (found.nearest,), (found.donors,), found.method)


def columns_of(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[Column, ...], Floats]:
    """(d,) columns that some lines name, and their (d,) trusted means.

    Lines of older files name a column's site only; its position is then read off the site or the end of the name.
    """
    found: dict[str, tuple[Column, float]] = {}
    known = [field.name for field in fields(Column)]
    for row in rows:
        for part in row["contributions"]:
            if part["column"] not in found:
                given = {name: str(part[name]) for name in known if name in part}
                column = Column(**{"name": str(part["column"]), **given})
                found[part["column"]] = _placed(column), float(part["trusted"])
    return tuple(column for column, _ in found.values()), np.array([mean for _, mean in found.values()])


def from_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> Iterator[Chunk]:
    """Reasons that stand in lines of ``causalmad detect``."""
    index = {column.name: i for i, column in enumerate(columns)}
    for number, row in enumerate(rows):
        amounts, values = np.zeros((1, len(index))), np.zeros((1, len(index)))
        for part in row["contributions"]:
            amounts[0, index[part["column"]]] = part["amount"]
            values[0, index[part["column"]]] = part["value"]
        near = tuple((str(one["id"]), float(one["distance"])) for one in row["nearest"])
        donors = {name: tuple(map(str, ids)) for name, ids in row.get("donors", {}).items()}
        method = str(row.get("method", OWN))
        yield Chunk((number,), np.array([float(row["score"])]), amounts, values, (near,), (donors,), method)


def require_rows(rows: Sequence[Any]) -> None:
    """The lines are those of ``causalmad detect``.

    Raises:
        InputsError: when there are none, or one lacks something.
    """
    needed = ("id", "flag", "alpha", "score", "p", "contributions", "nearest")
    tries = ["causalmad detect DIR INPUTS.jsonl --out flags.jsonl"]
    if not rows:
        raise InputsError("no lines to report", needed="at least one line of `causalmad detect`", tries=tries)
    for number, row in enumerate(rows, start=1):
        missing = [name for name in needed if name not in row] if isinstance(row, Mapping) else list(needed)
        if missing:
            raise InputsError(
                f"line {number} has no {', '.join(map(repr, missing))}",
                needed="what `causalmad detect` wrote",
                tries=tries,
            )


def _bulk(detector: FittedDetector, detection: Detection) -> Iterator[Chunk]:
    found, near = detection.signatures, _Nearest(detector)
    donors = _donors(detector, detection)
    for start in range(0, len(found), _CHUNK):
        rows = tuple(range(start, min(start + _CHUNK, len(found))))
        values = found.values[start : start + _CHUNK]
        amounts = _amounts(detector.reference, values)
        if amounts is None:  # at_once has asked the same reference before
            return
        given = tuple(donors.get(row, {}) for row in rows)
        scores = detection.scores[start : start + _CHUNK]
        yield Chunk(rows, scores, amounts, values.astype(np.float64), near(values.astype(np.float64)), given)


def _donors(detector: FittedDetector, detection: Detection) -> dict[int, Mapping[str, tuple[str, ...]]]:
    if not hasattr(detector.signature, "donors_of"):
        return {}
    return {row: detection.reason(row).donors for row in worst_first(detection)[:_WITH_DONORS]}


def _amounts(reference: Any, values: Any) -> Floats | None:
    """(n, d) contributions, where the reference's score is a sum over columns."""
    if isinstance(reference, FittedFolds):
        members = [_amounts(one, values) for one in reference.members]
        found = [amounts for amounts in members if amounts is not None]
        return np.mean(found, axis=0) if len(found) == len(members) else None
    if not hasattr(reference, "contributions"):
        return None
    return np.asarray(reference.contributions(values), dtype=np.float64)


class _Nearest:
    """The trusted inputs nearest to rows of signatures, in trusted standard deviations per column."""

    def __init__(self, detector: FittedDetector) -> None:
        normal = detector.trusted.values.astype(np.float64)
        spread = normal.std(0)
        self.ids, self.mean = detector.trusted.ids, normal.mean(0)
        self.unit = np.where(spread > 0, spread, 1.0)
        self.normal = (normal - self.mean) / self.unit
        self.squares = (self.normal**2).sum(1)

    def __call__(self, values: Floats) -> tuple[Near, ...]:
        rows = (values - self.mean) / self.unit
        # Products find who is near, up to rounding; their distances are then taken from the differences themselves.
        rough = self.squares[None] - 2 * rows @ self.normal.T
        few = min(_NEIGHBOURS + _SPARE, len(self.ids))
        near = np.sort(np.argpartition(rough, few - 1, axis=1)[:, :few], axis=1)
        distances = np.sqrt(((self.normal[near] - rows[:, None]) ** 2).mean(2))
        order = np.argsort(distances, axis=1, kind="stable")[:, :_NEIGHBOURS]
        pairs = zip(np.take_along_axis(near, order, 1).tolist(), np.take_along_axis(distances, order, 1).tolist())
        return tuple(tuple((self.ids[i], distance) for i, distance in zip(*pair)) for pair in pairs)


def _placed(column: Column) -> Column:
    if column.position:
        return column
    try:
        position = Site.parse(column.site).position
    except SiteError:
        position = None
    before, at, after = column.name.rpartition("@")
    if position is None and at and after.lstrip("-").isdigit():
        return replace(column, position=after, block=column.block or before.strip())
    return column if position is None else replace(column, position=str(position))
