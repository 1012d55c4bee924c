"""Provenance as a page lists it: seed, versions, sizes, and fingerprints of what a result depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from causalmad.models.fingerprint import digest
from causalmad.provenance import versions

_HASHED = 1_000_000_000  # parameters up to which a model is hashed: more of them take too long for a page

if TYPE_CHECKING:
    from causalmad.detection import Detection
    from causalmad.detector import FittedDetector
    from causalmad.inputs import Inputs
    from causalmad.models import OpenModel


def origin(
    detection: Detection, detector: FittedDetector | None = None, inputs: Inputs | None = None
) -> tuple[tuple[str, str], ...]:
    """Name and value of everything that a detection depends on.

    Args:
        detection: the detection.
        detector: what made it; without it the parts and the model's fingerprint are not listed.
        inputs: what was detected on; without them their content has no fingerprint, only their ids.
    """
    return tuple(_lines(detection, detector, inputs))


def fingerprint(texts: Iterable[str]) -> str:
    """A hash of some texts in their order."""
    whole = hashlib.blake2b(digest_size=16)
    for text in texts:
        whole.update(f"{len(text)}:{text}".encode("utf-8", "surrogatepass"))
    return whole.hexdigest()


def _lines(detection: Detection, detector: FittedDetector | None, inputs: Inputs | None) -> Iterator[tuple[str, str]]:
    known = detection.provenance
    if detector is not None:
        for name in ("signature", "reference", "calibrator"):
            yield name, repr(getattr(detector.spec, name))
    if "model" in known:
        yield "model", str(known["model"])
    if detector is not None:
        yield "model fingerprint", _model(detector.model)
    if "seed" in known:
        yield "seed", str(known["seed"])
    for name, ids in known.get("ids", {}).items():
        yield f"trusted inputs for the {name}", f"{len(ids)}, ids {fingerprint(ids)}"
    if inputs is None:
        yield "inputs", f"{len(detection)}, ids {fingerprint(detection.ids)}"
    else:
        yield "inputs", f"{len(detection)}, contents {fingerprint(inputs.digests)}"
    yield "columns of the signature", str(len(detection.signatures.columns))
    fitted = known.get("versions", {})
    yield "versions at the fit", ", ".join(f"{name} {version}" for name, version in fitted.items()) or "unknown"
    now = versions()
    if fitted and dict(fitted) != now:
        yield "versions at this report", ", ".join(f"{name} {version}" for name, version in now.items())


def _model(model: OpenModel) -> str:
    count = sum(part.numel() for part in model.module.parameters())
    if count > _HASHED:
        return f"not taken of {count:,} parameters; `detector.json` of a saved detector has it"
    return digest(model.parameter_fingerprints())
