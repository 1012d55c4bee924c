"""Detections and detectors made in a moment, from random signatures."""

from __future__ import annotations

from typing import Any

import numpy as np

from causalmad.calibration import Conformal
from causalmad.detection import Detection
from causalmad.explanation import explain
from causalmad.references import Mahalanobis
from causalmad.signatures.base import Column, Signatures


def columns(count: int) -> tuple[Column, ...]:
    """Columns of two blocks; those of the first have sites, those of the second positions."""
    half = count // 2
    return (
        *(Column(f"head {i}", f"h.{i // 2}.attn#head={i % 2}", f"{i}", "", "heads") for i in range(half)),
        *(Column(f"place @-{i + 1}", "", "", f"@-{i + 1}", "places") for i in range(count - half)),
    )


def made(count: int = 30, width: int = 8, *, ids: Any = None, seed: int = 0, alpha: float = 0.1, **given: Any) -> Any:
    """A detection with its reference and its trusted signatures; every third input is odd in the first column."""
    draw = np.random.default_rng(seed)
    named = columns(width)
    normal = Signatures(tuple(f"t{i}" for i in range(60)), named, draw.normal(size=(60, width)).astype(np.float32))
    values = draw.normal(size=(count, width)).astype(np.float32)
    values[::3, 0] += 6
    reference = Mahalanobis().fit(normal.values)
    scores = -reference.score_samples(values)
    p_values = Conformal().fit(-reference.score_samples(draw.normal(size=(60, width)))).p_values(scores)
    names = tuple(f"input {i}" for i in range(count)) if ids is None else tuple(ids)
    found = Signatures(names, named, values)

    def reason(row: int) -> Any:
        return explain(names[row], named, values[row], float(scores[row]), float(p_values[row]), reference, normal)

    provenance = {"seed": seed, "ids": {"reference": list(normal.ids)}, "versions": {"causalmad": "x"}, "model": "Net"}
    return Detection(found, scores, p_values, alpha, {**provenance, **given}, reason), reference, normal
