"""Claim: what each detector keeps of its power when somebody trains, searches or plays against it.

Every job (an attack on a task and seed) adds its records to ``benchmarks/attacks.json``, whole or not at all; jobs that
are there already are not run again. ``--tables`` writes the tables of ``docs/explanation/adversaries.md`` from the
records that are there.

    python benchmarks/attacks.py [--only PREFIX ...]
    python benchmarks/attacks.py --tables
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

sys.path.insert(0, str(Path(__file__).parent))

import torch
from attack_jobs import (
    FLAT,
    IMAGES,
    TEXT,
    Record,
    drifted,
    flooded,
    more_donors,
    moved,
    plain,
    poisoned,
    searched,
    trained,
)
from attack_tables import DETECTORS, KEPT, write_tables
from attack_tables import HIDDEN as SHOWN

from causalmad.errors import CausalmadError
from causalmad.evaluation.attacks import TrainTime
from causalmad.provenance import versions
from causalmad.whole import write_whole

OUT = Path(__file__).parent / "attacks.json"
Job: TypeAlias = tuple[str, Callable[[], list[Record]]]

# Those of the page, and one whose network is not right often enough from every seed.
HIDDEN = {**SHOWN, "ambiguous-features[obfuscated=activations]": "ambiguous-features"}
# One donor in the attacker's own profile, of units that are many here; the detector's has four, and others.
LIGHT = "resampling-profile[donors=1]+mahalanobis"
ATTACKS: dict[str, dict[str, TrainTime]] = {
    FLAT: {
        "control": TrainTime(weight=0.0),
        "activations": TrainTime(),
        "relevance-patching": TrainTime(("relevance-patching",)),
        "resampling-profile": TrainTime(("resampling-profile",), steps=1000),
        "views-harmonic": TrainTime(("views-harmonic",), steps=1000),
        f"resampling-profile{KEPT}": TrainTime(("resampling-profile",), steps=1000, spare=0.03),
        f"views-harmonic{KEPT}": TrainTime(("views-harmonic",), steps=1000, spare=0.03),
    },
    IMAGES: {
        "activations": TrainTime(),
        "relevance-patching": TrainTime(("relevance-patching",), looked=100),
        "resampling-profile": TrainTime((LIGHT,), looked=60),
        "views-harmonic": TrainTime(("activations", "relevance-patching", LIGHT), looked=60),
        f"views-harmonic{KEPT}": TrainTime(("activations", "relevance-patching", LIGHT), looked=60, spare=0.03),
    },
    TEXT: {
        "activations": TrainTime(),
        "relevance-patching": TrainTime(("relevance-patching",), looked=60, steps=400),
        "resampling-profile": TrainTime((LIGHT,), looked=40, steps=200),
        "views-harmonic": TrainTime(("activations", "relevance-patching", LIGHT), looked=40, steps=200),
    },
    "ambiguous-features": {"activations": TrainTime()},
}


WHITE = ("activations", "activations-relative", "relevance-patching", "resampling-profile", "views-harmonic")
SEARCHED = ("activations", "activations-relative", "ted", "beatrix", "relevance-patching", "resampling-profile")
POISONED = ("activations", "relevance-patching", "resampling-profile", "views-harmonic", "views-mean")


WHITE = ("activations", "activations-relative", "relevance-patching", "resampling-profile", "views-harmonic")
SEARCHED = ("activations", "activations-relative", "ted", "beatrix", "relevance-patching", "resampling-profile")
POISONED = ("activations", "relevance-patching", "resampling-profile", "views-harmonic", "views-mean")


def jobs() -> Iterator[Job]:
    """Everything that is run, the most important first."""
    flat = ("gate-digits-obfuscated", "password-locked[obfuscated=activations]")
    quick = (*flat, "ambiguous-features[obfuscated=activations]")
    for seed in (1, 2):
        yield from _hidden_jobs(seed, flat)
    yield from _threshold_jobs(0)
    yield from _input_jobs(0, (FLAT,))
    yield from _hidden_jobs(1, quick)
    yield from _input_jobs(0)
    for seed in (3, 4):
        yield from _hidden_jobs(seed, flat)
    yield from _training_jobs(1, (IMAGES,), ("activations",))
    yield from _training_jobs(1, (FLAT,), ("activations", "relevance-patching"))
    yield from _training_jobs(1, (TEXT,), ("activations",))
    for seed in (2, 3, 4):
        yield from _hidden_jobs(seed, quick)
    yield from _hidden_jobs(0, HIDDEN)
    yield from _training_jobs(0)
    for seed in (1, 2):
        yield from _training_jobs(seed, (FLAT,))
        yield from _training_jobs(seed, (IMAGES, TEXT), ("activations",))
        yield from _threshold_jobs(seed)
    for seed in (1, 2, 3, 4):
        yield from _hidden_jobs(seed, HIDDEN)
        yield from _training_jobs(seed)
        yield from _threshold_jobs(seed)
        yield from _input_jobs(seed)


def _hidden_jobs(seed: int, tasks: Iterable[str]) -> Iterator[Job]:
    for hidden in tasks:
        task = HIDDEN[hidden]
        if task != "ambiguous-features":
            yield f"hidden/{hidden}/{seed}", partial(plain, hidden, seed, "hidden")
        yield f"plain/{task}/{seed}", partial(plain, task, seed)
        if task == "ambiguous-features":
            for name, attack in ATTACKS[task].items():
                yield f"train/{task}/{name}/{seed}", partial(trained, task, seed, name, attack)


def _training_jobs(seed: int, tasks: Sequence[str] = (FLAT, IMAGES, TEXT), names: Sequence[str] = ()) -> Iterator[Job]:
    for task in tasks:
        yield f"plain/{task}/{seed}", partial(plain, task, seed)
        for name, attack in ATTACKS[task].items():
            if names and name not in names:
                continue
            yield f"train/{task}/{name}/{seed}", partial(trained, task, seed, name, attack)


def _input_jobs(seed: int, tasks: Sequence[str] = (FLAT, IMAGES, TEXT)) -> Iterator[Job]:
    for task in tasks:
        if task != TEXT:
            for name in WHITE:
                for size in (0.1, 0.2):
                    yield f"input/{task}/{name}/{size}/{seed}", partial(moved, task, seed, name, size, False)
                yield f"input/{task}/{name}/0.2 shared/{seed}", partial(moved, task, seed, name, 0.2, True)
        if task == IMAGES:
            for size in (0.1, 0.2):
                yield f"defence/{IMAGES}/{size}/{seed}", partial(more_donors, IMAGES, seed, size)
        for name in (*SEARCHED, "sufficiency" if task == TEXT else "views-harmonic"):
            yield f"search/{task}/{name}/{seed}", partial(searched, task, seed, name)


def _threshold_jobs(seed: int) -> Iterator[Job]:
    yield f"flood/{FLAT}/{seed}", partial(flooded, FLAT, seed, "views-harmonic")
    for task in (FLAT, "password-locked[obfuscated=activations]", IMAGES):
        for name in ("activations", "views-harmonic"):
            yield f"drift/{task}/{name}/{seed}", partial(drifted, task, seed, name)
    for task in (FLAT, IMAGES):
        # Profiles of 16 patches take long; a robust covariance cannot be fitted to layers with dead units.
        for name in POISONED if task == FLAT else ("activations", "relevance-patching"):
            yield f"poison/{task}/{name}/{seed}", partial(poisoned, task, seed, name)


def read(path: Path) -> dict[str, Any]:
    """What was measured so far."""
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    return {"versions": versions(), "jobs": {}}


def main() -> None:
    """Run what is missing, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="jobs whose names start so, in this order")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--tables", action="store_true")
    given = parser.parse_args()
    if given.tables:
        write_tables(read(given.out))
        return
    torch.set_num_threads(1)
    for name, run in (job for start in given.only for job in jobs() if job[0].startswith(start)):
        before = read(given.out)["jobs"].get(name, [])
        missing = lacking(name, before)
        if before and not missing:
            continue
        started = time.perf_counter()
        try:
            records = [*before, *(run(names=missing) if missing else run())]  # type: ignore[call-arg]
        except CausalmadError as error:  # the others go on; this one is tried again next time
            print(f"{name}: {error}", flush=True)
            continue
        known = read(given.out)  # again: another process may have added to it
        known["jobs"][name] = records
        write_whole(given.out, [text_of(known)])
        print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)


def lacking(job: str, records: Sequence[Record]) -> list[str]:
    """Detectors that were added since a job was run, where it measures all of them."""
    if not records or "failed" in records[0] or job.split("/")[0] not in ("hidden", "plain", "train"):
        return []
    return [name for name in DETECTORS if name not in {record["detector"] for record in records}]


def text_of(known: Record) -> str:
    """The records as JSON, one a line."""
    jobs = [
        f"{json.dumps(name)}: [\n" + ",\n".join(f"  {json.dumps(record)}" for record in records) + "\n ]"
        for name, records in known["jobs"].items()
    ]
    return f'{{"versions": {json.dumps(known["versions"])},\n"jobs": {{\n ' + ",\n ".join(jobs) + "\n}}\n"


if __name__ == "__main__":
    main()
