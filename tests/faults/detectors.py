"""Damaged detectors: saved folders of many kinds of parts, damaged by accident or forged with checksums that fit."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sklearn.ensemble import IsolationForest
from sklearn.svm import OneClassSVM

import causalmad as cm
from causalmad import Detector, FittedDetector
from causalmad.testing.toys import Toy, toy
from tests.faults.mutations import damage_bytes, damage_json, damage_safetensors, damage_tensors, damage_text
from tests.faults.watch import Fault

JSON, TENSORS = "detector.json", "state.safetensors"
s, r, c = cm.signatures, cm.references, cm.calibration


@dataclass(frozen=True)
class Saved:
    """A detector as it was saved, and what it says of fresh inputs."""

    toy: Toy
    files: dict[str, bytes]
    scores: np.ndarray
    p_values: np.ndarray
    hypothesis: Any = None


def _parts(made: Toy) -> dict[str, tuple[Any, ...]]:
    claim = made.hypothesis
    common = {
        "activations": (s.Activations(), r.Mahalanobis(), c.Conformal()),
        "profile": (s.ResamplingProfile(donors=2), r.PerSite(r.Mahalanobis()), c.CalibrationConditional()),
        "estimator": (s.AttributionPatching(baseline="donors"), OneClassSVM(gamma=0.1), c.Conformal()),
        "forest": (s.Activations(), IsolationForest(n_estimators=3), c.CrossConformal(folds=3)),
        "scrubbing": (s.CausalScrubbing(claim, draws=2), r.Mahalanobis(), c.Conformal()),
        "nested": (
            s.Concat((s.Conditional(s.Activations()), s.GradientNorms())),
            r.Transformed(r.NearestNeighbours()),
            c.Mondrian("class"),
        ),
        "code": (s.SparseCode(steps=5, latents=8, k=4), r.EmpiricalTails(), c.CrossConformal(folds=3)),
        "pool": (s.OutputOnly(), r.QuantumEntropy(), c.Weighted(("length",))),
    }
    if made.trusted.tokens:
        return {key: common[key] for key in ("profile", "scrubbing")} | {
            "attention": (s.AttentionPatterns(), r.PrincipalComponents(), c.Mondrian("length", bins=2))
        }
    return common


@cache
def saved(name: str) -> Saved:
    """A detector by the names of a toy and of its parts, such as ``mlp/profile``."""
    model, _, key = name.partition("/")
    made = toy(model, trusted=60, fresh=5)
    signature, reference, calibrator = _parts(made)[key]
    spec = Detector(signature, reference, calibrator)
    fitted = spec.fit(made.model, made.trusted, toy(model, 30, 30).fresh if spec.compares else None, seed=3)
    claim = made.hypothesis if key == "scrubbing" else None
    with TemporaryDirectory() as folder:
        fitted.save(Path(folder) / "det")
        files = {path.name: path.read_bytes() for path in (Path(folder) / "det").iterdir()}
        again = FittedDetector.load(Path(folder) / "det", made.model, hypothesis=claim)
    found = again.detect(made.fresh, alpha=0.5)
    return Saved(made, files, found.scores, found.p_values, claim)


def names() -> list[str]:
    """All detectors that are damaged."""
    return [f"{model}/{key}" for model in ("mlp", "gpt2") for key in _parts(toy(model, 8, 2))]


def sealed(content: dict[str, Any], tensors: bytes) -> dict[str, bytes]:
    """The files of a detector with checksums that fit: what a stranger who knows the format writes."""
    content = {key: value for key, value in content.items() if key != "checksum"}
    if isinstance(content.get("files"), dict) and set(content["files"]) == {TENSORS}:
        content["files"] = {TENSORS: hashlib.sha256(tensors).hexdigest()}
    text = json.dumps(content, sort_keys=True)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return {JSON: json.dumps({"checksum": checksum, **json.loads(text)}).encode(), TENSORS: tensors}


def damaged(one: Saved, draw: random.Random) -> tuple[str, dict[str, bytes]]:
    """How it was damaged, and the files; what begins with ``forged`` has checksums that fit."""
    from safetensors.torch import load, save

    files = dict(one.files)
    content = json.loads(files[JSON])
    kind = draw.choice(_KINDS)
    if kind == "bytes":
        name = draw.choice((JSON, TENSORS))
        files[name] = damage_bytes(files[name], draw)
    elif kind == "text":
        files[JSON] = damage_text(files[JSON], draw)
    elif kind == "json":
        files[JSON] = json.dumps(damage_json(content, draw)).encode()
    elif kind == "missing":
        del files[draw.choice((JSON, TENSORS))]
    elif kind == "schema":
        content["schema"] = draw.choice((0, 2, 99, "1", 1.0, None, [1]))
        files = sealed(content, files[TENSORS])
        kind = "schema" if content["schema"] != 1 else "forged schema"
    elif kind == "forged json":
        part = draw.choice((*content, "signature", "signature_data", "signature_data", "reference", "calibrator"))
        found = damage_json({part: content[part]} if part in content else content, draw)
        content.pop(part, None)
        files = sealed({**content, **found} if isinstance(found, dict) else {"schema": found}, files[TENSORS])
    elif kind == "forged header":
        files = sealed(content, damage_safetensors(files[TENSORS], draw))
    else:
        try:
            data = save(damage_tensors(load(files[TENSORS]), draw))
        except Exception:  # not every damage can be written
            data = damage_bytes(files[TENSORS], draw)
        files = sealed(content, data)
    return kind, files


_KINDS = (
    ("bytes", "bytes", "text", "json", "missing", "schema")
    + ("forged json", "forged tensors") * 4
    + ("forged header",) * 2
)


def attempt(name: str, draw: random.Random, folder: Path) -> tuple[str, Callable[[], None]]:
    """How a detector was damaged, and loading and using it."""
    one = saved(name)
    kind, files = damaged(one, draw)
    path, shown = folder / "det", draw.random() < 0.15
    path.mkdir()
    for file, data in files.items():
        (path / file).write_bytes(data)

    def use() -> None:
        fitted = FittedDetector.load(path, one.toy.model, hypothesis=one.hypothesis)
        found = fitted.detect(one.toy.fresh, alpha=0.9)
        if len(found.scores) != len(one.scores) or not np.isfinite(found.p_values).all():
            raise Fault(f"{len(found.scores)} scores, p-values {found.p_values}")
        if ((found.p_values <= 0) | (found.p_values > 1)).any():
            raise Fault(f"p-values {found.p_values}")
        if not kind.startswith("forged") and not (
            np.array_equal(found.scores, one.scores) and np.array_equal(found.p_values, one.p_values)
        ):
            raise Fault("other scores than those that were saved")
        if shown:  # explanations take longer than all the rest
            str(found), str(found.explain(0))

    return kind, use
