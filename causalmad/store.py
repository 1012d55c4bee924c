"""Saved detectors: a directory of plain data, written at once or not at all, checked before it is believed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from causalmad.calibration.repeats import FittedRepeats, restore_repeats
from causalmad.config import from_config, to_config
from causalmad.errors import CausalmadError, HypothesisError, StoreError
from causalmad.models import open_model
from causalmad.models.computed import first_change, record
from causalmad.models.fingerprint import first_difference, glance
from causalmad.references.base import FittedReference, as_rows
from causalmad.references.folded import FittedFolds, restore_folds
from causalmad.signatures.base import Column, Signatures, State
from causalmad.whole import read_whole, require_elsewhere, short

if TYPE_CHECKING:
    from causalmad.detector import FittedDetector

SCHEMA = 1
_JSON, _TENSORS = "detector.json", "state.safetensors"
_TURNS = 20
_ASIDE = ".old."  # in the names of folders that were moved out of the way
# What loading a file may ask for: scikit-learn's estimators are fitted again, for as long as their options say.
_MOST = 1 << 20
_ROUNDS = ("n_estimators", "n_components", "n_init", "max_iter")
_JOBS = 256
_LEAST_TOLERANCE = 1e-12


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
            "repeats": isinstance(detector.calibrator, FittedRepeats),
            "provenance": detector.provenance,
            "model": {
                "name": model.name,
                "side": model.side,
                "batch_size": "auto" if model.batching.auto else model.batch_size,
            },
            "parameters": model.parameter_fingerprints(),
            "buffers": record(model.module),
            "files": {name: _hash(data) for name, data in files.items()},
        }
        _require_bounded(content)
    except CausalmadError as error:
        raise StoreError(f"this detector cannot be saved: {error}") from error
    text = json.dumps(content, sort_keys=True)
    files[_JSON] = json.dumps({"checksum": _hash(text.encode()), **json.loads(text)}, indent=1).encode()
    _write(path, files)


def load(path: Path, model: Any, hypothesis: Any = None) -> FittedDetector:
    """Read a fitted detector; see :meth:`FittedDetector.load`."""
    content, files = _read_all(path)
    open_model(model)  # what is no model is no error of the files
    try:
        return _rebuild(content, files, model, path, hypothesis)
    except (StoreError, HypothesisError):
        raise
    except Exception as error:  # whatever a forged file makes a reader, a plug-in or scikit-learn raise
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
    causes = ["the model was trained further", "another checkpoint, precision or quantisation"]
    if not difference:
        # Detectors that were saved before there was a record of them are loaded as they were.
        difference = first_change(content.get("buffers", {}), opened.module)
        causes = ["other options that buffers are computed from, such as the base of rotary positions"]
    if difference:
        raise StoreError(
            f"{path} was fitted on another model: {difference} ({content['model']['name']} then, {opened.name} now)",
            needed="the very weights that it was fitted on",
            causes=causes,
            tries=["load the checkpoint of the fit", "fit again"],
        )
    if not hasattr(model, "accepts"):  # bit-equal scores need the same batches
        size = content["model"]["batch_size"]
        opened = open_model(model, side=content["model"]["side"], batch_size="auto" if size == "auto" else int(size))
    tensors = from_bytes(files[_TENSORS])
    _require_bounded(content)
    _require_known(content["provenance"])
    spec = Detector(
        from_config("signatures", content["signature"], _part(tensors, "options"), hypothesis),
        from_config("references", content["reference"]),
        from_config("calibrators", content["calibrator"]),
        content["calibration_share"],
    )
    signature = spec.signature.restore(opened, State(_part(tensors, "signature"), content["signature_data"]))
    trusted = _trusted(content["trusted_ids"], signature.columns, tensors["trusted:values"].numpy())
    context = _arrays(tensors, "context")
    reference = _reference(spec.reference, tensors, trusted, context, content)
    kept = _arrays(tensors, "calibrator")
    calibrator = restore_repeats(spec.calibrator, kept) if content.get("repeats") else spec.calibrator.restore(kept)
    some = np.asarray(reference.score_samples(trusted.values[:2]), dtype=np.float64)
    if some.shape != (min(2, len(trusted)),) or np.isnan(some).any():
        raise StoreError(f"the reference in {path} gives {some.tolist()} for two rows", needed="a number for each")
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
        origin=str(path),
        weights=glance(opened.module),
    )


def _require_known(provenance: Any) -> None:
    """A provenance is what a fit writes down: whoever shows or extends it relies on that.

    Raises:
        StoreError: when it is not.
    """
    known = provenance if isinstance(provenance, dict) else {}
    ids = known.get("ids")
    parts = ("signature", "reference", "calibration")
    listed = isinstance(ids, dict) and set(parts) <= set(ids) and all(isinstance(ids[name], list) for name in parts)
    if not listed or not isinstance(known.get("seed"), int) or not isinstance(known.get("versions"), dict):
        raise StoreError(f"a provenance of {str(provenance)[:60]!r}", needed="the ids of each part, a seed, versions")


def _require_bounded(content: Mapping[str, Any]) -> None:
    """No option asks for more than any detector takes: whoever loads a file did not write it.

    Raises:
        StoreError: otherwise, with the option.
    """
    pending: list[Any] = [content["signature"], content["reference"], content["calibrator"]]
    while pending:
        value = pending.pop()
        pending += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        if not isinstance(value, dict) or not isinstance(value.get("options"), dict):
            continue
        options = {key: number for key, number in value["options"].items() if isinstance(number, (int, float))}
        large = {key: number for key, number in options.items() if abs(number) > _MOST and key != "random_state"}
        rounds = {key: options[key] for key in _ROUNDS if options.get(key, 0) > 1}
        if math.prod(rounds.values()) > _MOST:
            large |= rounds
        large |= {key: number for key, number in options.items() if key == "n_jobs" and number > _JOBS}
        large |= {key: number for key, number in options.items() if key == "tol" and number < _LEAST_TOLERANCE}
        if large:
            raise StoreError(
                f"{value.get('name')} with {', '.join(f'{key}={number}' for key, number in large.items())}",
                needed="options that let a detector be loaded in finite time and memory",
                tries=["other options, and fit again"],
            )


def _trusted(ids: Any, columns: tuple[Column, ...], values: Any) -> Signatures:
    """The trusted signatures, a row for each id and a number for each column.

    Raises:
        StoreError: when they are not that.
    """
    rows = as_rows(values, what="saved trusted signatures", columns=len(columns), error=StoreError)
    if values.dtype != np.float32 or not isinstance(ids, list) or not 0 < len(ids) == len(rows):
        raise StoreError(f"saved trusted signatures of shape {rows.shape}", needed="a float32 row for each trusted id")
    return Signatures(tuple(map(str, ids)), columns, values)


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
    from causalmad.fitting import fit_on

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
    try:
        there = {file.name for file in path.iterdir()} if path.is_dir() else set()
        if path.exists() and (not path.is_dir() or there not in (set(), {_JSON, _TENSORS})):
            raise StoreError(f"{path} holds something else than a detector", tries=["another folder", "empty it first"])
        require_elsewhere(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{short(path.name)}.", dir=path.parent))
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
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}", causes=["a full or read-only disk"]) from error


def _exchange(fresh: Path, path: Path) -> None:
    """``fresh`` in place of ``path``, which is put back if that fails; after a kill in between, it is still read."""
    for last in (False, False, True):
        old = Path(tempfile.mkdtemp(prefix=f".{short(path.name)}{_ASIDE}", dir=path.parent))
        try:
            if path.exists():
                os.replace(path, old)
            os.replace(fresh, path)
            break
        except OSError:
            if not path.exists() and any(old.iterdir()):
                os.replace(old, path)
                raise
            if last or not (path / _JSON).exists():  # otherwise somebody else was faster
                raise
        finally:
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
    for left in _set_aside(path):
        shutil.rmtree(left, ignore_errors=True)


def _set_aside(path: Path) -> list[Path]:
    """What saves to ``path`` moved out of its place, the newest first: some are left where a save was killed."""
    found = [each for each in path.parent.glob(".*") if each.name.startswith(f".{short(path.name)}{_ASIDE}")]
    return sorted(found, key=lambda each: (_identity(each) or (0, 0))[1], reverse=True)


def _read_all(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The description and the files that it names, of one and the same save, also while somebody saves."""
    path = path.resolve() if path.is_symlink() else path
    for turn in range(_TURNS):
        before, folder = _identity(path), path
        if before is None:  # a save was killed between its two renames, or is between them
            folder = next((each for each in _set_aside(path) if (each / _JSON).is_file()), path)
        try:
            content = _parsed(_read(folder / _JSON, None), folder)
            return content, {name: _read(folder / name, sha) for name, sha in _named_files(content, folder).items()}
        except StoreError:
            after = _identity(path)
            if turn == _TURNS - 1 or (after == before and (after is not None or not _set_aside(path))):
                raise
        time.sleep(0.01)
    raise StoreError(f"{path} cannot be read")


def _identity(path: Path) -> tuple[int, int] | None:
    """Which folder it is, None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _parsed(data: bytes, path: Path) -> dict[str, Any]:
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
        data = read_whole(path)
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
