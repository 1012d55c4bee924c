"""Saved detectors: a directory of plain data, written at once or not at all, checked before it is believed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from causalmad.config import from_config, to_config
from causalmad.errors import CausalmadError, HypothesisError, StoreError
from causalmad.models import open_model
from causalmad.models.fingerprint import first_difference
from causalmad.references.base import FittedReference
from causalmad.references.folded import FittedFolds, restore_folds
from causalmad.signatures.base import Signatures, State

if TYPE_CHECKING:
    from causalmad.detector import FittedDetector

SCHEMA = 1
_JSON, _TENSORS = "detector.json", "state.safetensors"


def save(detector: FittedDetector, path: Path) -> None:
    """Write a fitted detector to a directory; see :meth:`FittedDetector.save`."""
    from safetensors.torch import save as to_bytes

    spec = detector.spec
    if not hasattr(detector.signature, "state") or not hasattr(spec.signature, "restore"):
        raise StoreError(
            f"a {type(spec.signature).__name__} cannot be saved",
            needed="state() on the fitted signature and restore(model, state) on its spec",
        )
    state = detector.signature.state()
    tensors = {f"signature:{key}": value for key, value in state.tensors.items()}
    tensors["trusted:values"] = torch.from_numpy(detector.trusted.values)
    tensors |= _reference_tensors(detector)
    tensors |= _tensors("calibrator", detector.calibrator)
    model = detector.model
    options: dict[str, Tensor] = {}
    try:
        signature = to_config("signatures", spec.signature, options)
        tensors |= {f"options:{key}": value for key, value in options.items()}
        files = {_TENSORS: to_bytes({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()})}
        content = {
            "schema": SCHEMA,
            "signature": signature,
            "reference": to_config("references", spec.reference),
            "calibrator": to_config("calibrators", spec.calibrator),
            "calibration_share": spec.calibration_share,
            "signature_data": state.data,
            "trusted_ids": detector.trusted.ids,
            "seen": sorted(detector.seen),
            "pool": sorted(detector.pool),
            "folded": isinstance(detector.reference, FittedFolds),
            "provenance": detector.provenance,
            "model": {
                "name": model.name,
                "side": model.side,
                "batch_size": "auto" if model.batching.auto else model.batch_size,
            },
            "parameters": model.parameter_fingerprints(),
            "files": {name: _hash(data) for name, data in files.items()},
        }
    except CausalmadError as error:
        raise StoreError(f"this detector cannot be saved: {error}") from error
    text = json.dumps(content, sort_keys=True)
    files[_JSON] = json.dumps({"checksum": _hash(text.encode()), **json.loads(text)}, indent=1).encode()
    _write(path, files)


def load(path: Path, model: Any, hypothesis: Any = None) -> FittedDetector:
    """Read a fitted detector; see :meth:`FittedDetector.load`."""
    content = _read_json(path)
    files = {name: _read(path / name, expected) for name, expected in _named_files(content, path).items()}
    try:
        return _rebuild(content, files, model, path, hypothesis)
    except (StoreError, HypothesisError):
        raise
    except (CausalmadError, KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise StoreError(
            f"{path} does not describe a detector: {type(error).__name__}: {error}",
            causes=["a plug-in that is not installed here", "files of another version of causalmad"],
        ) from error


def _rebuild(
    content: dict[str, Any], files: dict[str, bytes], model: Any, path: Path, hypothesis: Any
) -> FittedDetector:
    from safetensors.torch import load as from_bytes

    from causalmad.detector import Detector, FittedDetector

    opened = open_model(model)
    difference = first_difference(content["parameters"], opened.parameter_fingerprints())
    if difference:
        raise StoreError(
            f"{path} was fitted on another model: {difference} ({content['model']['name']} then, {opened.name} now)",
            needed="the very weights that it was fitted on",
            causes=["the model was trained further", "another checkpoint, precision or quantisation"],
            tries=["load the checkpoint of the fit", "fit again"],
        )
    if not hasattr(model, "accepts"):  # bit-equal scores need the same batches
        size = content["model"]["batch_size"]
        opened = open_model(model, side=content["model"]["side"], batch_size="auto" if size == "auto" else int(size))
    tensors = from_bytes(files[_TENSORS])
    spec = Detector(
        from_config("signatures", content["signature"], _part(tensors, "options"), hypothesis),
        from_config("references", content["reference"]),
        from_config("calibrators", content["calibrator"]),
        content["calibration_share"],
    )
    signature = spec.signature.restore(opened, State(_part(tensors, "signature"), content["signature_data"]))
    trusted = Signatures(tuple(content["trusted_ids"]), signature.columns, tensors["trusted:values"].numpy())
    context = _arrays(tensors, "context")
    reference = _reference(spec.reference, tensors, trusted, context, content)
    calibrator = spec.calibrator.restore(_arrays(tensors, "calibrator"))
    return FittedDetector(
        spec,
        opened,
        signature,
        reference,
        calibrator,
        trusted,
        frozenset(content["seen"]),
        content["provenance"],
        pool=frozenset(content["pool"]),
        context=context,
    )


def _reference_tensors(detector: FittedDetector) -> dict[str, Tensor]:
    """The fitted reference's own arrays, or what it takes to fit it again and to check that.

    Code objects are never saved: a reference that holds some has a ``state`` that says so by a `StoreError`.
    """
    try:
        if hasattr(detector.reference, "state"):
            detector.reference.state()
    except StoreError:
        again = {f"context:{key}": torch.from_numpy(np.array(value)) for key, value in detector.context.items()}
        scores = detector.reference.score_samples(detector.trusted.values)
        return {**again, "trusted:scores": torch.from_numpy(np.array(scores))}
    return _tensors("reference", detector.reference)


def _reference(
    spec: Any, tensors: dict[str, Tensor], trusted: Signatures, context: dict[str, Any], content: dict[str, Any]
) -> FittedReference:
    """The fitted reference: restored, or fitted again on the saved signatures where no file can hold it."""
    from causalmad.detector import fit_on

    if "trusted:scores" not in tensors:
        state = _arrays(tensors, "reference")
        restored: FittedReference = restore_folds(spec, state) if content["folded"] else spec.restore(state)
        return restored
    provenance = content["provenance"]
    fitted = fit_on(spec, trusted, context, int(provenance["seed"]))
    if not np.array_equal(fitted.score_samples(trusted.values), tensors["trusted:scores"].numpy()):
        then = provenance.get("versions", {}).get("scikit-learn")
        raise StoreError(
            f"{type(spec).__name__} fitted again on the saved signatures does not give the saved scores",
            causes=[f"another version of scikit-learn than {then}", "another processor or number of threads"],
            tries=[f"pip install scikit-learn=={then}", "fit again", "reference=causalmad.references.Mahalanobis()"],
        )
    return fitted


def _tensors(prefix: str, part: Any) -> dict[str, Tensor]:
    if not hasattr(part, "state"):
        raise StoreError(
            f"a fitted {type(part).__name__} cannot be saved: it has no state()",
            tries=["causalmad.references.Mahalanobis()", "a scikit-learn estimator"],
        )
    return {f"{prefix}:{key}": torch.from_numpy(np.array(value)) for key, value in part.state().items()}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}:"
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}


def _arrays(tensors: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    return {key: value.numpy() for key, value in _part(tensors, prefix).items()}


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, files: dict[str, bytes]) -> None:
    """All files at once: a temporary directory beside the target, synced, then renamed."""
    path = path.resolve()  # a link stays a link
    there = {file.name for file in path.iterdir()} if path.is_dir() else set()
    if path.exists() and (not path.is_dir() or there not in (set(), {_JSON, _TENSORS})):
        raise StoreError(f"{path} holds something else than a detector", tries=["another folder", "empty it first"])
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for name, data in files.items():
            with (fresh / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        fresh.chmod(0o755)
        _exchange(fresh, path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _exchange(fresh: Path, path: Path) -> None:
    """``fresh`` in place of ``path``, which is put back if that fails."""
    if not path.exists():
        os.replace(fresh, path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    try:
        os.replace(path, old)
        try:
            os.replace(fresh, path)
        except OSError:
            os.replace(old, path)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _read_json(path: Path) -> dict[str, Any]:
    data = _read(path / _JSON, None)
    try:
        content = json.loads(data)
        checksum = content.pop("checksum")
        sound = checksum == _hash(json.dumps(content, sort_keys=True).encode())
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise StoreError(f"{path / _JSON} is damaged: {error}", tries=["fit and save again"]) from error
    if not sound:
        raise StoreError(
            f"{path / _JSON} is not what was saved: its checksum differs",
            causes=["an edit by hand", "a damaged disk or transfer"],
            tries=["copy the folder again", "fit and save again"],
        )
    if content.get("schema") != SCHEMA:
        raise StoreError(f"{path} has schema {content.get('schema')!r}", needed=f"schema {SCHEMA}", tries=["fit again"])
    return dict(content)


def _named_files(content: dict[str, Any], path: Path) -> dict[str, str]:
    files = content.get("files")
    if not isinstance(files, dict) or set(files) != {_TENSORS}:
        raise StoreError(f"{path / _JSON} names other files than a detector has")
    return files


def _read(path: Path, expected: str | None) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read: {error.strerror}",
            needed=f"a folder with {_JSON} and {_TENSORS}, as FittedDetector.save writes it",
        ) from error
    if expected is not None and _hash(data) != expected:
        raise StoreError(
            f"{path} is not what was saved: its checksum differs ({len(data)} bytes)",
            causes=["a truncated copy", "an edit", "a damaged disk"],
            tries=["copy the folder again", "fit and save again"],
        )
    return data
