"""The campaign: everything that is tried, counted by kind, into benchmarks/faults.json.

    python -m tests.faults                       # all kinds; those that are in the file already are left out
    python -m tests.faults --only kills/monitor models --again
    python -m tests.faults --mutations 10000 --kills 200
    python -m tests.faults --only fuzz           # needs `pip install atheris`; left out without it

Kinds are written to the file one by one, so that a campaign that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import collections
import fcntl
import importlib.util
import json
import logging
import os
import random
import re
import resource
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from causalmad.whole import write_whole

OUT = Path("benchmarks") / "faults.json"
# Shares of all mutations and of all kills.
MUTATIONS = {"shard": 0.06, "log": 0.05, "flags": 0.05, "trained model": 0.08, "monitor": 0.1}
DETECTORS = 0.4
KILLS = {"bench, two processes": 0.01, "bench": 0.09, "fit and save": 0.16}
SEED = 20_000
FUZZED = ("lines", "monitor", "log", "circuit", "hypothesis", "description", "tensors", "shard")


def mutations(name: str, count: int) -> dict[str, Any]:
    """So many damaged files of one kind."""
    from tests.faults import detectors, plain
    from tests.faults.watch import judge

    outcomes, faults = collections.Counter[str](), []
    detail: dict[str, collections.Counter[str]] = {}
    for number in range(count):
        draw = random.Random(SEED + number)
        with TemporaryDirectory() as folder:
            kind, _, which = name.partition(" ")
            if kind == "detector":
                how, use = detectors.attempt(which, draw, Path(folder))
            else:
                how, use = plain.TARGETS[name](draw, Path(folder))
            found = judge(use, Path(folder))
        outcomes[found.kind] += 1
        detail.setdefault(how, collections.Counter())[found.kind] += 1
        if found.kind == "fault":
            faults.append(f"seed {SEED + number}, {how}: {found.detail}")
    return {
        "tried": count,
        "failed": outcomes["fault"],
        "named error": outcomes["refused"],
        "right result": outcomes["right"],
        "by damage": {how: dict(sorted(each.items())) for how, each in sorted(detail.items())},
        "seeds": [SEED, SEED + count - 1],
        "first failures": faults[:5],
    }


def kills(name: str, count: int) -> dict[str, Any]:
    """So many kills of one victim."""
    from tests.faults.kills import VICTIMS, campaign

    return campaign(VICTIMS[name](), count, SEED)


def cases(each: Iterable[Callable[[], Any]]) -> dict[str, Any]:
    """Cases that hold or do not."""
    said: dict[str, Any] = {}
    wrong = []
    for case in each:
        name = getattr(case, "__name__", None) or case.func.__name__  # type: ignore[attr-defined]
        try:
            said[name] = case() or "holds"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and not str(error):
                raise
            said[name] = f"{type(error).__name__}: {error}"[:300]
            wrong.append(f"{name}: {said[name]} {''.join(traceback.format_tb(error.__traceback__)[-1:])}")
    return {"tried": len(said), "failed": len(wrong), "cases": said, "first failures": wrong[:5]}


def fuzz(name: str, seconds: int) -> dict[str, Any]:
    """A coverage-guided run over one reader, in a process of its own that ends at its first crash."""
    with TemporaryDirectory() as folder:
        given = ("-seed=1", f"-max_total_time={seconds}", f"-artifact_prefix={folder}/", "-print_final_stats=1")
        command = [sys.executable, "-m", "tests.faults.fuzz", name, *given]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        said = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        crashes = [path.read_bytes()[:2000].hex() for path in Path(folder).iterdir()]
    count = re.search(r"stat::number_of_executed_units:\s*(\d+)", said.stderr)
    failed = said.returncode != 0 or count is None
    return {
        "tried": int(count.group(1)) if count else 0,
        "failed": int(failed),
        "seconds of the processor": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "atheris": version("atheris"),
        "first failures": [*crashes, said.stderr[-2000:]] if failed else [],
    }


def kinds(mutation_count: int, kill_count: int, fuzz_seconds: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """Every kind by its name."""
    from tests.faults import data, detectors, models, plain, surroundings
    from tests.faults.kills import VICTIMS

    found: dict[str, Callable[[], dict[str, Any]]] = {
        "surroundings": partial(cases, surroundings.CASES),
        "models": partial(cases, models.CASES),
    }
    saved = [f"detector {name}" for name in detectors.names()]
    shares = {**MUTATIONS, **{name: DETECTORS / len(saved) for name in saved}}
    shared = (mutation_count, shares, [*saved, *plain.TARGETS]), (kill_count, KILLS, list(VICTIMS))
    for count, shares, names in shared:
        rest = [name for name in names if name not in shares]
        left = count - sum(round(count * share) for share in shares.values())
        counts = {name: round(count * share) for name, share in shares.items()}
        counts |= {name: left // len(rest) + (place < left % len(rest)) for place, name in enumerate(rest)}
        run = kills if names is shared[1][2] else mutations
        prefix = "kills" if run is kills else "mutations"
        found |= {f"{prefix}/{name}": partial(run, name, counts[name]) for name in names}
    found["data"] = partial(cases, data.FULL)
    if importlib.util.find_spec("atheris") is None:
        sys.stderr.write("fuzz: left out, for there is no atheris\n")
        return found
    return {**found, **{f"fuzz/{name}": partial(fuzz, name, fuzz_seconds) for name in FUZZED}}


def page(data: dict[str, Any]) -> str:
    """The counts as a table, for docs/explanation/faults.md."""
    rows = ["| kind | tried | failed | named error | right result |", "|---|---|---|---|---|"]
    for name, each in sorted(data["kinds"].items()):
        ends = [f"{each[key]:,}" if key in each else "" for key in ("named error", "right result")]
        rows.append(f"| {name.replace('/', ': ')} | {each['tried']:,} | {each['failed']:,} | {' | '.join(ends)} |")
    return "\n".join(rows)


def write(out: Path, name: str, found: dict[str, Any], versions: dict[str, str]) -> None:
    """Put one kind in place of the one of its name; another process may write other kinds at the same time."""
    with (out.parent / ".results.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kinds = {**(json.loads(out.read_text())["kinds"] if out.exists() else {}), name: found}
        total = {key: sum(each[key] for each in kinds.values()) for key in ("tried", "failed")}
        write_whole(out, [json.dumps({"total": total, "kinds": kinds, "versions": versions}, indent=1) + "\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", nargs="+", default=[], metavar="KIND")
    parser.add_argument("--again", action="store_true", help="also what is in the file already")
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--fuzz", type=int, default=120, metavar="SECONDS", help="for each reader")
    parser.add_argument("--page", action="store_true", help="print the table for the page, and try nothing")
    options = parser.parse_args()
    if options.page:
        print(page(json.loads(options.out.read_text())))
        return
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    from causalmad.provenance import versions

    torch.set_num_threads(1)
    out = options.out.resolve()
    done: dict[str, Any] = json.loads(out.read_text())["kinds"] if out.exists() else {}
    for name, run in kinds(options.mutations, options.kills, options.fuzz).items():
        if options.only and not any(name.startswith(each) for each in options.only):
            continue
        if name in done and not options.again:
            continue
        started = time.perf_counter()
        found = run()
        done[name] = {**found, "seconds": round(time.perf_counter() - started, 1)}
        sys.stderr.write(f"{name}: {found['tried']} tried, {found['failed']} failed\n")
        for line in found["first failures"]:
            sys.stderr.write(f"    {line}\n")
        write(out, name, done[name], versions())


if __name__ == "__main__":
    main()
