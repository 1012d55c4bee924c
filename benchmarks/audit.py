"""An audit reports a trusted set of which a fifth is of another kind, where its signature sees it, and few clean ones.

    python benchmarks/audit.py [OUT.json]

Groups (:func:`causalmad.groups.apart`): trusted signatures of tasks, of which a share is replaced by anomalies of the
task; the signature is fitted once, on clean inputs, and every run draws other rows. Audits (``cm.audit``) on a toy:
every run draws inputs of its own, and bad ones that lie at 6 in all directions.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import causalmad as cm
from causalmad import Detector, Inputs
from causalmad.config import parse_spec
from causalmad.extraction.extract import rows_of
from causalmad.groups import apart
from causalmad.models import open_model
from causalmad.names import parse_detector
from causalmad.provenance import versions
from causalmad.testing.toys import toy

TASKS = ("backdoor-digits", "gate-digits", "password-locked", "parity-gate", "skip-trigram", "induction-lookup")
TASKS += ("planted-routes", "modular-sum", "quirky-arithmetic")
SIGNATURES = ("activations", "output-only", "attribution-patching")
SHARES = (0.0, 0.05, 0.1, 0.2)
RUNS, COUNT = 20, 600


def groups(task: str, name: str) -> Iterator[dict[str, Any]]:
    """What is reported of one task's signatures at every share."""
    data = parse_spec("tasks", task).load(0)
    model = open_model(data.model)
    spec = parse_detector(f"{name}+mahalanobis").signature
    signature = spec.fit(model, model.inputs(data.trusted[:900]), 0)
    good, bad = (
        rows_of(signature, spec, model, None, model.inputs(part)).values
        for part in (data.trusted[:900], data.test[np.flatnonzero(data.labels)[:300]])
    )
    for share in SHARES:
        yield {"task": task, "signature": name, "share": share, **_counted(good, bad, round(share * COUNT))}


def _counted(good: Any, bad: Any, count: int) -> dict[str, Any]:
    reported, members, right = 0, 0, 0
    for seed in range(RUNS):
        draw = np.random.default_rng(seed)
        rows = [good[draw.permutation(len(good))[: COUNT - count]], bad[draw.permutation(len(bad))[:count]]]
        _, found = apart(np.concatenate(rows))
        reported += bool(found.any())
        members += int(found.sum())
        right += int(found[COUNT - count :].sum())
    return _said(reported, members, right, count)


def _said(reported: int, members: int, right: int, count: int) -> dict[str, Any]:
    """Of the runs that reported a group: how much of it is bad, and how much of the bad it has."""
    found = {"runs": RUNS, "bad": count, "reported": reported}
    if reported and count:
        found |= {
            "bad among members": round(right / members, 3),
            "found of the bad": round(right / reported / count, 3),
        }
    return found


def audits(covariance: str, count: int) -> Iterator[dict[str, Any]]:
    """What whole audits of a toy report at every share."""
    made = toy("mlp", trusted=20)
    for share in SHARES:
        bad = round(share * count)
        reported, members, right, unlike, unlike_bad = 0, 0, 0, 0, 0
        for seed in range(RUNS):
            draw = torch.Generator().manual_seed(seed)
            rows = torch.randn(count, 12, generator=draw)
            rows[count - bad :] += 6
            inputs = Inputs.of(rows, ids=[f"{'good' if row < count - bad else 'bad'}{row}" for row in range(count)])
            detector = Detector(cm.signatures.Activations(), cm.references.Mahalanobis(covariance))
            said = cm.audit(detector, made.model, inputs)
            reported += bool(said.apart)
            members += len(said.apart)
            right += sum(key.startswith("bad") for key in said.apart)
            unlike += len(said.unlike)
            unlike_bad += sum(key.startswith("bad") for key in said.unlike)
        about = {"covariance": covariance, "inputs": count, "share": share, **_said(reported, members, right, bad)}
        yield {**about, "unlike, a run": unlike / RUNS, "of them bad": unlike_bad / RUNS}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, Any]]] = {"audits": [], "groups": []}
    for covariance in ("ledoit-wolf", "robust"):
        for count in (150, COUNT):
            for row in audits(covariance, count):
                print(row, flush=True)
                found["audits"].append(row)
    for task in TASKS:
        for name in SIGNATURES:
            for row in groups(task, name):
                print(row, flush=True)
                found["groups"].append(row)
    about = {"rows": COUNT, "versions": versions()}
    out.write_text(json.dumps({**about, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".json"))
