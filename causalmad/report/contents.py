"""What a report says, as pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from causalmad.report.charts import Chart
from causalmad.report.claims import Graph
from causalmad.report.reasons import Reasons, short
from causalmad.report.tokens import Tokens


@dataclass(frozen=True)
class Report:
    """A detection with its reasons, ready to be drawn.

    Attributes:
        title: what it is about.
        level: what flags are bounded by, in words.
        ids: (n,) of the inputs.
        scores: (n,) anomaly scores.
        p_values: (n,) p-values.
        adjusted: (n,) p-values adjusted for all inputs at once; empty where every input is tested for itself.
        flags: (n,) which inputs are flagged.
        labels: (n,) which inputs are anomalous; empty where that is not known.
        remarks: row -> why its p-value says less than it seems to.
        reasons: why inputs scored as they did.
        tokens: the inputs, where they are tokens.
        charts: of all inputs together.
        graph: the hypothesis, where there is one.
        notes: sentences on all inputs together.
        provenance: name and value of everything that the result depends on.
        command: what makes it again.
    """

    title: str
    level: str
    ids: tuple[str, ...]
    scores: tuple[float, ...]
    p_values: tuple[float, ...]
    adjusted: tuple[float, ...]
    flags: tuple[bool, ...]
    labels: tuple[bool, ...]
    remarks: Mapping[int, str]
    reasons: Reasons
    tokens: Tokens
    charts: tuple[Chart, ...]
    graph: Graph | None
    notes: tuple[str, ...]
    provenance: tuple[tuple[str, str], ...]
    command: str = ""

    @property
    def headline(self) -> str:
        """The result in a sentence."""
        return f"{sum(self.flags):,} of {len(self.ids):,} inputs flagged at {self.level}"

    @property
    def failing(self) -> Mapping[str, int]:
        """Claimed variable -> of how many flagged inputs it is the part that contributes most."""
        counts: dict[str, int] = {}
        places = [i for i, row in enumerate(self.reasons.rows) if self.flags[row]]
        failed = [self.reasons.failed(place) for place in places]
        for node in self.graph.nodes if self.graph else ():
            counts[node.name] = sum(block in node.blocks for block in failed)
        return counts

    def data(self) -> dict[str, object]:
        """What the page's script shows of single inputs, as JSON data: one list per quantity, to be short."""
        why = self.reasons
        near = {key: i for i, key in enumerate(dict.fromkeys(key for some in why.nearest for key, _ in some))}
        donors = [{name: list(ids) for name, ids in given.items()} for given in why.donors]
        every = why.rows == tuple(range(len(self.ids)))
        return {
            "level": self.level,
            "ids": self.ids,
            "score": [short(score, 6) for score in self.scores],
            "p": [short(p) for p in self.p_values],
            "adjusted": [short(p) for p in self.adjusted],
            "flag": "".join("1" if flag else "0" for flag in self.flags),
            "label": "".join("1" if label else "0" for label in self.labels),
            "remarks": self.remarks,
            "columns": [column.name for column in why.columns],
            "trusted": why.trusted,
            "blocks": why.blocks,
            "grids": [asdict(grid) for grid in why.grids],
            "rows": None if every else why.rows,
            "top": [[number for triple in some for number in triple] for some in why.top],
            "rest": why.rest,
            "leading": why.leading,
            "parts": why.parts,
            "cells": why.cells,
            "totals": why.totals,
            "trustedIds": list(near),
            "nearest": [[number for key, gap in some for number in (near[key], gap)] for some in why.nearest],
            "donors": donors if any(donors) else [],
            "method": why.method,
            "vocabulary": self.tokens.vocabulary,
            "tokens": self.tokens.rows,
            "cut": self.tokens.cut,
            "spans": self.tokens.blocks,
            "nodes": [node.blocks for node in self.graph.nodes] if self.graph else [],
        }
