"""Logs: everything that is known about one detector on one task and seed, as one file that explains itself.

Leaderboards, tables and plots are made from logs alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from causalmad.config import to_config
from causalmad.detector import Detector
from causalmad.errors import CausalmadError, StoreError
from causalmad.evaluation.bootstrap import Scored
from causalmad.evaluation.results import SeedResult
from causalmad.inputs import Inputs
from causalmad.provenance import revision, versions
from causalmad.tasks.base import Task, TaskData
from causalmad.whole import read_whole, write_whole

SCHEMA = 1


@dataclass(frozen=True)
class Log:
    """One run.

    Attributes:
        task: the task as it is written on the command line.
        detector: the detector as it is called in a suite, or as it is written there.
        seed: of the task and of the fit.
        content: all that was logged: ``arguments`` (given and defaulted), ``versions``, ``revision``, ``fingerprints``,
            ``result``, ``ids``, ``labels``, ``scores``, ``p_values``, ``normal_p_values``; or ``refused``, the reason
            for which the detector does not apply to the task.
    """

    task: str
    detector: str
    seed: int
    content: Mapping[str, Any]

    @property
    def refused(self) -> str | None:
        """Why the detector does not apply to the task, where it does not."""
        found = self.content.get("refused")
        return None if found is None else str(found)

    @property
    def null(self) -> bool:
        """Whether the task is a null one, whose "anomalies" come about like everything else."""
        return bool(self._option("null"))

    @property
    def shifted(self) -> bool:
        """Whether the task's normal inputs are not exchangeable with the trusted ones."""
        said = self.content.get("card", {}).get("exchangeable")
        return bool(self._option("shift")) if said is None else not said

    def _option(self, name: str) -> Any:
        options = self.content.get("arguments", {}).get("task")
        return options.get(name) if isinstance(options, Mapping) else None

    @property
    def scored(self) -> Scored:
        """Labels and scores of the test inputs."""
        labels, scores = (np.array(self.content[name]) for name in ("labels", "scores"))
        return Scored(labels.astype(bool), scores.astype(np.float64))

    @property
    def auroc(self) -> float:
        """On the test inputs."""
        return float(self.content["result"]["auroc"])

    @classmethod
    def of(
        cls,
        task: str,
        spec: Task,
        detector: str,
        parts: Detector,
        data: TaskData,
        found: SeedResult | CausalmadError,
        fingerprint: str,
    ) -> Log:
        """The log of a run that was done, or refused by the detector.

        Args:
            task: as it is written on the command line.
            spec: the task itself.
            detector: as it is called in a suite.
            parts: the detector itself.
            data: what the task gave.
            found: what came of it.
            fingerprint: of the task's model.
        """
        content: dict[str, Any] = {
            "arguments": {
                "task": _options(spec),
                "detector": _arguments(parts),
                "seed": data.seed,
            },
            "versions": versions(),
            "revision": revision(),
            "fingerprints": fingerprints(spec, data, fingerprint),
            "card": {
                key: data.card[key] for key in ("mechanism", "version", "accuracy", "exchangeable") if key in data.card
            },
        }
        content["card"].setdefault("version", spec.version)
        if isinstance(found, CausalmadError):
            return cls(task, detector, data.seed, {**content, "refused": found.what})
        content |= {
            "result": {**found.to_data(), "controls": dict(found.controls)},
            "ids": list(data.test.ids),
            "labels": data.labels.astype(int).tolist(),
            "scores": found.scores.tolist(),
            "p_values": found.p_values.tolist(),
            "normal_p_values": found.normal_p_values.tolist(),
        }
        return cls(task, detector, data.seed, content)

    def made_by(self, spec: Task, parts: Detector, prints: Mapping[str, str] | None = None) -> bool:
        """Whether the run is of this task, of its present version, and of this detector with these options.

        Args:
            spec: the task.
            parts: the detector.
            prints: :func:`fingerprints` of what the task gives now; None where it follows from options and seed.
        """
        if prints is not None and prints != self.content.get("fingerprints"):
            return False
        known = {"task": _options(spec), "detector": _arguments(parts), "seed": self.seed}
        version = self.content.get("card", {}).get("version", spec.version)
        return bool(version == spec.version and json.loads(json.dumps(known)) == self.content.get("arguments"))

    def write(self, folder: Path) -> Path:
        """Write the log to its place in a folder, at once or not at all.

        Raises:
            StoreError: when it cannot be written.
        """
        body = {"schema": SCHEMA, "task": self.task, "detector": self.detector, "seed": self.seed, **self.content}
        text = json.dumps(body, sort_keys=True)
        path = place(folder, self.task, self.detector, self.seed)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return write_whole(path, [json.dumps({"checksum": _hash(text.encode()), **json.loads(text)})])
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror}") from error

    @classmethod
    def read(cls, path: Path) -> Log:
        """The log in a file.

        Raises:
            StoreError: when it is missing, damaged or of another schema.
        """
        try:
            content = json.loads(read_whole(path))
            checksum = content.pop("checksum")
            sound = checksum == _hash(json.dumps(content, sort_keys=True).encode())
        except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise StoreError(f"{path} is no log: {error}", tries=["delete it and run the command again"]) from error
        if not sound or content.get("schema") != SCHEMA:
            raise StoreError(
                f"{path} is not what was written: its checksum or schema differs",
                causes=["an edit by hand", "another version of causalmad"],
                tries=["delete it and run the command again"],
            )
        content.pop("schema")
        wrong = _wrong(content)
        if wrong:
            raise StoreError(f"{path} is no log: {wrong}", tries=["delete it and run the command again"])
        task, detector, seed = (content.pop(key) for key in ("task", "detector", "seed"))
        return cls(task, detector, seed, content)


def fingerprints(spec: Task, data: TaskData, model: str) -> dict[str, str]:
    """Hashes of a task's model and test inputs; where they come from outside, of all its inputs and labels.

    Args:
        spec: the task.
        data: what it gave.
        model: the fingerprint of its model.
    """
    found = {"model": model, "test": _hash("".join(data.test.digests).encode())}
    if getattr(spec, "outside", False):
        parts = {"trusted": data.trusted, "normal": data.normal, "untrusted": data.untrusted}
        found |= {name: _inputs_hash(inputs) for name, inputs in parts.items() if inputs is not None}
        found["labelled test"] = _hash(f"{_inputs_hash(data.test)}{data.labels.tolist()}".encode())
    return found


def place(folder: Path, task: str, detector: str, seed: int) -> Path:
    """Where a run's log lies: names that any file system takes, and different ones for different detectors."""
    short = re.sub(r"[^a-z0-9.+=-]+", "_", detector.lower())[:60]
    within = re.sub(r"[^a-z0-9.=-]+|^\.+", "_", task)  # never a way out of the folder
    return folder / "logs" / within / f"{short}.{_hash(detector.encode())[:6]}.{seed}.json"


def read_logs(folders: Iterable[Path]) -> tuple[Log, ...]:
    """Every log below some folders, in the order of their names.

    Raises:
        StoreError: when there is none, or one is damaged.
    """
    paths = sorted(path for folder in folders for path in Path(folder).glob("**/logs/*/*.json"))
    if not paths:
        listed = ", ".join(map(str, folders))
        raise StoreError(f"no logs below {listed}", tries=["causalmad bench --suite quick --out results/"])
    return tuple(Log.read(path) for path in paths)


def _wrong(content: Mapping[str, Any]) -> str:
    """What is not as :meth:`Log.write` writes it, in words; whoever reads a log relies on the rest."""
    kinds = {"task": str, "detector": str, "seed": int, "arguments": dict, "versions": dict, "fingerprints": dict}
    wrong = [key for key, kind in kinds.items() if not isinstance(content.get(key), kind)]
    wrong += ["card"] if not isinstance(content.get("card", {}), dict) else []
    if wrong or content.get("refused") is not None:
        return f"{wrong[0]} is {content.get(wrong[0])!r}"[:80] if wrong else ""
    ids, labels, scores = (content.get(key, []) for key in ("ids", "labels", "scores"))
    if not _texts(ids) or len(set(ids)) != len(ids):
        return "ids are no list of different texts"
    if not _numbers(labels, len(ids)) or not _numbers(scores, len(ids)) or set(labels) != {0, 1}:
        return "labels and scores are not one number for each id, with labels of both kinds"
    result = content.get("result")
    if not isinstance(result, dict) or not _numbers([result.get("auroc"), result.get("average_precision")], 2):
        return "the result has no auroc and average_precision"
    for name in ("tpr_at_fpr", "fpr_at_alpha", "subsets", "fpr_interval99"):
        table = result.get(name, {})
        pairs = name == "fpr_interval99"
        fits = isinstance(table, dict) and all(
            each is None or (_numbers(each, 2) if pairs else _numbers([each], 1)) for each in table.values()
        )
        if not fits:
            return f"{name} of the result is no table of {'intervals' if pairs else 'numbers'}"
    return ""


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _numbers(value: Any, count: int) -> bool:
    """Whether a value is a list of so many numbers, infinity among them, but not NaN."""
    if not isinstance(value, list) or len(value) != count:
        return False
    most = sys.float_info.max
    return all(
        each == each if isinstance(each, float) else isinstance(each, int) and abs(each) < most for each in value
    )


def _options(spec: Any) -> Any:
    return asdict(spec) if is_dataclass(spec) and not isinstance(spec, type) else repr(spec)


def _arguments(parts: Detector) -> dict[str, Any]:
    """Every option of a detector, given or defaulted."""
    found: dict[str, Any] = {"calibration_share": parts.calibration_share}
    for name in ("signature", "reference", "calibrator"):
        part = getattr(parts, name)
        try:
            found[name] = to_config(f"{name}s", part, {})
        except CausalmadError:
            found[name] = repr(part)
    return found


def _inputs_hash(inputs: Inputs) -> str:
    """Of everything that a run may depend on: ids, contents, columns, blocks."""
    digest = hashlib.sha256(repr((inputs.ids, inputs.digests)).encode("utf-8", "surrogatepass"))
    for name, values in sorted(inputs.columns.items()):
        digest.update(repr((name, values.tolist())).encode("utf-8", "surrogatepass"))
    for name in sorted(inputs.blocks):
        digest.update(repr((name, inputs.block_mask(name).tolist())).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
