"""Explanation: which columns make a score what it is, and which trusted inputs are nearest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.references.base import FittedReference, anomaly_scores
from causalmad.references.folded import FittedFolds
from causalmad.references.shapley import EXACT, shapley
from causalmad.signatures.base import Column, Signatures

Floats = npt.NDArray[np.float64]

OWN = "the reference's own sum over columns"
SHAPLEY = "exact Shapley values over columns, against the trusted median"
SAMPLED = "Shapley values over columns, estimated over random orders, against the trusted median"


@dataclass(frozen=True)
class Contribution:
    """One column's part of a score.

    Attributes:
        column: the column.
        amount: its part of the anomaly score; all amounts sum to the score.
        value: what the signature of this input has there.
        trusted: mean over the trusted inputs.
    """

    column: Column
    amount: float
    value: float
    trusted: float


@dataclass(frozen=True)
class Explanation:
    """Why an input scored as it did.

    Attributes:
        id: the input.
        score: anomaly score, higher = more anomalous.
        p_value: its p-value.
        contributions: parts of the score, the largest by size first; they sum to it.
        nearest: (id, distance) of the nearest trusted inputs, in trusted standard deviations per column.
        donors: what was replaced -> ids of the trusted donors, for signatures that choose donors for every input.
        method: how the contributions were found: by the reference itself, or as Shapley values of its score, with the
            trusted median in place of what is absent and the score of that median spread evenly over the columns.
    """

    id: str
    score: float
    p_value: float
    contributions: tuple[Contribution, ...]
    nearest: tuple[tuple[str, float], ...]
    donors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    method: str = OWN

    @property
    def parts(self) -> dict[str, float]:
        """Block of columns (a claim, a kind of unit) -> its part of the score, the largest first."""
        sums: dict[str, float] = {}
        for part in self.contributions:
            sums[part.column.block] = sums.get(part.column.block, 0.0) + part.amount
        return dict(sorted(sums.items(), key=lambda pair: -pair[1]))

    @property
    def failed(self) -> str:
        """The block that contributes most: for a hypothesis, the claim that does not hold for this input."""
        return next(iter(self.parts))

    @property
    def leading(self) -> str:
        """Name of the column that contributes most."""
        return max(self.contributions, key=lambda part: part.amount).column.name

    def show(self, top: int = 10) -> None:
        """Print the explanation as a table."""
        from rich.console import Console

        Console(markup=False).print(self._table(top))

    def __str__(self) -> str:
        """The explanation as plain text."""
        return plain(self._table(10))

    def plot(self, top: int = 12, ax: Any = None) -> Any:
        """Matplotlib axes with bars of the ``top`` largest contributions, the rest in one more: they sum to the score.

        Args:
            top: how many columns have a bar of their own.
            ax: axes to draw on; without, new ones, of a figure (``ax.figure``) that pyplot does not know of.

        Raises:
            SpecError: when matplotlib is not installed.
        """
        from causalmad.plots.bars import bars

        return bars([(part.column.name, part.amount) for part in self.contributions], self._title, top, ax)

    def heatmap(self, ax: Any = None) -> Any:
        """Matplotlib axes with the contributions on a grid: layers by heads, by positions or by other units.

        Args:
            ax: as in :meth:`plot`.

        Raises:
            SpecError: when the columns form no such grid, or matplotlib is not installed.
        """
        from causalmad.plots.heatmap import Part, heatmap

        parts = [Part(p.amount, p.column.site, p.column.unit, p.column.position) for p in self.contributions]
        return heatmap(parts, self._title, ax)

    def _repr_html_(self) -> str:
        """The explanation as a table for notebooks."""
        from causalmad.plots.tables import to_html

        return to_html(self._table(10))

    @property
    def _title(self) -> str:
        return f"input {self.id}: score {self.score:.4g}, p = {self.p_value:.3g}"

    def to_data(self) -> dict[str, object]:
        """The explanation as JSON data."""
        parts = [
            {"column": p.column.name, "site": p.column.site, "amount": p.amount, "value": p.value, "trusted": p.trusted}
            for p in self.contributions
        ]
        nearest = [{"id": key, "distance": distance} for key, distance in self.nearest]
        known = {"score": self.score, "p": self.p_value, "contributions": parts, "nearest": nearest}
        data: dict[str, object] = {**known, "method": self.method}
        return {**data, "donors": {name: list(ids) for name, ids in self.donors.items()}} if self.donors else data

    def _table(self, top: int) -> object:
        return table(self.id, self.to_data(), top)


def table(key: str, data: dict[str, object], top: int = 10) -> object:
    """A rich table of an explanation's JSON data, so that a saved one can be shown without its detector."""
    from rich.table import Table

    parts: list[dict[str, float]] = data["contributions"]  # type: ignore[assignment]
    nearest: list[dict[str, float]] = data["nearest"]  # type: ignore[assignment]
    near = ", ".join(f"{row['id']} ({row['distance']:.2g})" for row in nearest)
    donors: dict[str, list[str]] = data.get("donors", {})  # type: ignore[assignment]
    given = "".join(f"\ndonors of {name}: {', '.join(ids) or 'none'}" for name, ids in donors.items())
    method = data.get("method", OWN)
    how = "" if method == OWN else f"\ncontributions: {method}"
    found = Table(
        title=f"input {key}: score {data['score']:.4g}, p = {data['p']:.3g}",
        caption=f"nearest trusted inputs: {near or 'none'}{given}{how}",
        title_justify="left",
        caption_justify="left",
    )
    for heading, side in (("column", "left"), ("contribution", "right"), ("here", "right"), ("trusted mean", "right")):
        found.add_column(heading, justify=side, overflow="fold")  # type: ignore[arg-type]
    for part in parts[:top]:
        found.add_row(str(part["column"]), *(f"{part[name]:.4g}" for name in ("amount", "value", "trusted")))
    rest = sum(part["amount"] for part in parts[top:])
    if len(parts) > top:
        found.add_row(f"{len(parts) - top} more columns", f"{rest:.4g}", "", "")
    found.add_section()
    found.add_row("sum", f"{sum(part['amount'] for part in parts):.4g}", "", "")
    return found


def plain(renderable: object, width: int = 110) -> str:
    """Anything that rich can render, as text without colours."""
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    Console(file=out, width=width, color_system=None, markup=False).print(renderable)
    return out.getvalue().rstrip()


def explain(
    key: str,
    columns: tuple[Column, ...],
    values: npt.NDArray[np.float32],
    score: float,
    p_value: float,
    reference: FittedReference,
    trusted: Signatures,
    neighbours: int = 5,
    donors: Mapping[str, tuple[str, ...]] | None = None,
) -> Explanation:
    """The explanation of one row.

    Args:
        key: id of the input.
        columns: (d,) columns.
        values: (d,) signature of the input.
        score: its anomaly score.
        p_value: its p-value.
        reference: what scored it; without ``contributions`` of its own, Shapley values are taken, see
            :func:`causalmad.references.shapley.shapley`.
        trusted: signatures of the trusted inputs.
        neighbours: how many nearest trusted inputs.
        donors: what was replaced -> ids of the donors.
    """
    normal = trusted.values.astype(np.float64)
    mean = normal.mean(0)
    row = values.astype(np.float64)
    amounts, method = _amounts(reference, values, normal)
    parts = [
        Contribution(column, float(amount), float(here), float(usual))
        for column, amount, here, usual in zip(columns, amounts, row, mean, strict=True)
    ]
    parts.sort(key=lambda part: -abs(part.amount))
    spread = normal.std(0)
    unit = np.where(spread > 0, spread, 1.0)
    distances = np.sqrt((((normal - row) / unit) ** 2).mean(1))
    order = np.argsort(distances, kind="stable")[:neighbours]
    nearest = tuple((trusted.ids[i], float(distances[i])) for i in order)
    return Explanation(key, score, p_value, tuple(parts), nearest, donors or {}, method)


def _amounts(reference: FittedReference, values: npt.NDArray[np.float32], normal: Floats) -> tuple[Floats, str]:
    """(d,) contributions that sum to the anomaly score, and how they were found."""
    if isinstance(reference, FittedFolds):
        each = [_amounts(one, values, normal) for one in reference.members]
        return np.mean([amounts for amounts, _ in each], axis=0), each[0][1]
    if hasattr(reference, "contributions"):
        return np.asarray(reference.contributions(values[None]))[0], OWN
    score = partial(anomaly_scores, reference.score_samples)
    parts = shapley(score, values[None], np.median(normal, axis=0)[None])
    return parts[0], SHAPLEY if len(values) <= EXACT else SAMPLED
