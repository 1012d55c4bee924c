"""Claim: what each detector keeps of its power when somebody trains, searches or plays against it.

Every job (an attack on a task and seed) adds its records to ``benchmarks/attacks.json``, whole or not at all; jobs that
are there already are not run again. ``--tables`` writes the tables of ``docs/explanation/adversaries.md`` from the
records that are there.

    python benchmarks/attacks.py [--only PREFIX ...]
    python benchmarks/attacks.py --tables
"""

from __future__ import annotations

import argparse
import fcntl
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
    softened,
    trained,
)
from attack_tables import DETECTORS, EQUAL, SEARCHED, SOFTENED, SPARE, SPARES, spared, write_tables
from attack_tables import HIDDEN as SHOWN

from causalmad.detectors import RECOMMENDED
from causalmad.errors import CausalmadError
from causalmad.evaluation.attacks import TrainTime
from causalmad.provenance import versions
from causalmad.whole import write_whole

OUT = Path(__file__).parent / "attacks.json"
Job: TypeAlias = tuple[str, Callable[[], list[Record]]]

# Those of the page, and one whose network is not right often enough from every seed.
HIDDEN = {**SHOWN, "ambiguous-features[obfuscated=activations]": "ambiguous-features"}
# One donor in the attacker's own profile, of units that are many here, and Gram matrices of fewer features. Both are
# drawn anew as the attack goes; the detector has four donors and 64 features, and others.
LIGHT = "resampling-profile[donors=1]+mahalanobis"
GRAM = "gram-deviation[most_features=32]+mahalanobis"
VIEWS = ("activations", "relevance-patching", "resampling-profile", GRAM)  # those of the recommended detector
LIGHTER = ("activations", "relevance-patching", LIGHT, GRAM)
ATTACKS: dict[str, dict[str, TrainTime]] = {
    FLAT: {
        "activations": TrainTime(),
        RECOMMENDED: TrainTime(VIEWS, steps=800, looked=100),
        **{spared(RECOMMENDED, spare): TrainTime(VIEWS, steps=800, looked=100, spare=spare) for spare in SPARES},
        "control": TrainTime(weight=0.0, steps=800),
        "activations-relative": TrainTime(("activations-relative",), weight=3.0),
        "relevance-patching": TrainTime(("relevance-patching",)),
        "resampling-profile": TrainTime(("resampling-profile",), steps=800, looked=100),
        EQUAL["activations-relative"]: TrainTime(("activations-relative",), weight=3.0, spare=SPARE),
        EQUAL["resampling-profile"]: TrainTime(("resampling-profile",), steps=800, looked=100, spare=SPARE),
        "beatrix": TrainTime((GRAM,), looked=100),
    },
    IMAGES: {
        "activations": TrainTime(),
        "control": TrainTime(weight=0.0),
        RECOMMENDED: TrainTime(LIGHTER, looked=60),
        EQUAL[RECOMMENDED]: TrainTime(LIGHTER, looked=60, spare=SPARE),
        "activations-relative": TrainTime(("activations-relative",), weight=3.0),
        "relevance-patching": TrainTime(("relevance-patching",), looked=100),
        "resampling-profile": TrainTime((LIGHT,), looked=60),
        EQUAL["activations-relative"]: TrainTime(("activations-relative",), weight=3.0, spare=SPARE),
        EQUAL["resampling-profile"]: TrainTime((LIGHT,), looked=60, spare=SPARE),
    },
    TEXT: {
        "activations": TrainTime(),
        "control": TrainTime(weight=0.0),
        RECOMMENDED: TrainTime(LIGHTER, looked=40, steps=200),
        "relevance-patching": TrainTime(("relevance-patching",), looked=60, steps=400),
        "resampling-profile": TrainTime((LIGHT,), looked=40, steps=200),
        EQUAL[RECOMMENDED]: TrainTime(LIGHTER, looked=40, steps=200, spare=SPARE),
        EQUAL["resampling-profile"]: TrainTime((LIGHT,), looked=40, steps=200, spare=SPARE),
    },
    "ambiguous-features": {"activations": TrainTime()},
}
WHITE = ("activations", "activations-relative", "beatrix", "relevance-patching", "resampling-profile", RECOMMENDED)
POISONED = ("activations", "relevance-patching", "resampling-profile", RECOMMENDED)
SEEDS = range(5)
# Points of a curve, of which the recommended detector and its parts are enough.
ON_THE_CURVE = (spared(RECOMMENDED, SPARES[0]), spared(RECOMMENDED, SPARES[-1]))


def jobs() -> Iterator[Job]:
    """Everything that is run, the most important first."""
    flat, others = tuple(SHOWN)[:2], tuple(SHOWN)[2:]
    first = ("activations", RECOMMENDED, *(spared(RECOMMENDED, spare) for spare in SPARES))
    for seed in SEEDS:
        yield from _hidden_jobs(seed, flat)
    for seed in SEEDS:
        yield from _training_jobs(seed, FLAT, first)
    for seed in SEEDS:
        yield from _hidden_jobs(seed, others)
    for seed in SEEDS:
        yield from _search_jobs(seed, FLAT)
        yield from _input_jobs(seed, FLAT)
        yield from _threshold_jobs(seed, FLAT)
    for seed in SEEDS:
        yield from _training_jobs(seed, IMAGES, first)
    for seed in SEEDS:
        yield from _training_jobs(seed, FLAT)
    for seed in SEEDS:
        yield from _defence_jobs(seed)
        yield from _input_jobs(seed, IMAGES)
        yield from _threshold_jobs(seed, IMAGES)
    for seed in SEEDS:
        yield from _soft_jobs(seed)
    for name in (("activations",), (RECOMMENDED,), ()):
        for seed in SEEDS:
            yield from _training_jobs(seed, TEXT, name)
    for seed in SEEDS:
        yield from _search_jobs(seed, IMAGES)
        yield from _search_jobs(seed, TEXT)
        yield from _hidden_jobs(seed, HIDDEN)
        yield from _training_jobs(seed, IMAGES)


def _hidden_jobs(seed: int, tasks: Iterable[str]) -> Iterator[Job]:
    for hidden in tasks:
        task = HIDDEN[hidden]
        if task != "ambiguous-features":
            yield f"hidden/{hidden}/{seed}", partial(plain, hidden, seed, "hidden")
        yield f"plain/{task}/{seed}", partial(plain, task, seed)
        if task == "ambiguous-features":
            yield from _training_jobs(seed, task)


def _training_jobs(seed: int, task: str, names: Sequence[str] = ()) -> Iterator[Job]:
    yield f"plain/{task}/{seed}", partial(plain, task, seed)
    for name, attack in ATTACKS[task].items():
        if not names or name in names:
            seen = SOFTENED if name in ON_THE_CURVE else DETECTORS
            yield f"train/{task}/{name}/{seed}", partial(trained, task, seed, name, attack, names=seen)


def _input_jobs(seed: int, task: str) -> Iterator[Job]:
    yield f"input/{task}/nothing/0/{seed}", partial(moved, task, seed, "nothing", 0.0, False)
    for name in WHITE:
        for size, shared in ((0.1, False), (0.2, False), (0.2, True)) if task == FLAT else ((0.2, False),):
            job = f"input/{task}/{name}/{size}{' shared' * shared}/{seed}"
            yield job, partial(moved, task, seed, name, size, shared)


def _search_jobs(seed: int, task: str) -> Iterator[Job]:
    for name in {FLAT: DETECTORS, IMAGES: SEARCHED, TEXT: (*SEARCHED, "sufficiency")}[task]:
        yield f"search/{task}/{name}/{seed}", partial(searched, task, seed, name)


def _soft_jobs(seed: int) -> Iterator[Job]:
    yield f"soft/{TEXT}/nothing/0/{seed}", partial(softened, TEXT, seed, "nothing", 0.0)
    for name in SOFTENED:
        if name == "beatrix":  # looks on
            continue
        for size in (0.3, 1.0):
            yield f"soft/{TEXT}/{name}/{size}/{seed}", partial(softened, TEXT, seed, name, size)


def _defence_jobs(seed: int) -> Iterator[Job]:
    for size in (0.1, 0.2):
        yield f"defence/{IMAGES}/{size}/{seed}", partial(more_donors, IMAGES, seed, size)


def _threshold_jobs(seed: int, task: str) -> Iterator[Job]:
    if task == FLAT:
        yield f"flood/{FLAT}/{seed}", partial(flooded, FLAT, seed, RECOMMENDED)
    for each in (task, *(hidden for hidden, own in SHOWN.items() if own == task == FLAT)):
        for name in ("activations", RECOMMENDED):
            yield f"drift/{each}/{name}/{seed}", partial(drifted, each, seed, name)
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
        missing = lacking(name, before, getattr(run, "keywords", {}).get("names", DETECTORS))
        if before and not missing:
            continue
        started, worked = time.perf_counter(), time.process_time()
        try:
            records = [*before, *(run(names=missing) if missing else run())]  # type: ignore[call-arg]
        except CausalmadError as error:  # the others go on; this one is tried again next time
            print(f"{name}: {error}", flush=True)
            continue
        add(given.out, name, records)
        spent = time.perf_counter() - started, time.process_time() - worked
        print(f"{name}: {spent[0]:.1f} s, {spent[1]:.1f} s of a processor", flush=True)


def add(path: Path, name: str, records: list[Record]) -> None:
    """Add a job to the file, to which other processes may add theirs."""
    with path.with_name(".results.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = read(path)
        known["jobs"][name] = records
        write_whole(path, [text_of(known)])


def lacking(job: str, records: Sequence[Record], names: Sequence[str]) -> list[str]:
    """Detectors that were added since a job was run, where it measures all of them."""
    if not records or "failed" in records[0] or job.split("/")[0] not in ("hidden", "plain", "train"):
        return []
    return [name for name in names if name not in {record["detector"] for record in records}]


def text_of(known: Record) -> str:
    """The records as JSON, one a line."""
    jobs = [
        f"{json.dumps(name)}: [\n" + ",\n".join(f"  {json.dumps(record)}" for record in records) + "\n ]"
        for name, records in known["jobs"].items()
    ]
    return f'{{"versions": {json.dumps(known["versions"])},\n"jobs": {{\n ' + ",\n ".join(jobs) + "\n}}\n"


if __name__ == "__main__":
    main()
