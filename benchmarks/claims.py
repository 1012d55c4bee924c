"""Claims and the figures that support or refute them, in ``benchmarks/results.json``; every script writes through here.

Imported before torch, for it sets the number of threads.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from causalmad.provenance import versions
from causalmad.whole import write_whole

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"


def write_claim(name: str, values: list[float], limit: float, *, setting: str, note: str = "", **more: Any) -> None:
    """Put one claim in place of the one of its name; all others stay as they are.

    Args:
        name: of the claim.
        values: what was measured, run by run; their median counts.
        limit: what it may be at most.
        setting: on what it was measured.
        note: what else there is to know.
        more: further figures.
    """
    value = float(median(values))
    record(
        {
            "name": name,
            "value": round(value, 4),
            "limit": limit,
            "holds": value <= limit,
            "runs": len(values),
            "direction": "at most",
            "setting": setting,
            "note": note,
            "measured": [round(float(each), 4) for each in values],
            **more,
        }
    )


def record(entry: dict[str, Any]) -> None:
    """Merge one claim, with how busy the machine was, into the results by its name; others may write meanwhile."""
    change(lambda data: _merged(data, "claims", {**entry, "load": round(os.getloadavg()[0], 1)}))


def curve(entry: dict[str, Any]) -> None:
    """Merge one scaling curve into the results by its name."""
    change(lambda data: _merged(data, "curves", entry))


def change(edit: Callable[[dict[str, Any]], None]) -> None:
    """Read the results, edit them, and write them whole, while no other process does."""
    with (HERE / ".results.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        data = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        data["machine"] = machine()
        data.setdefault("claims", [])
        edit(data)
        write_whole(RESULTS, [json.dumps(data, indent=1) + "\n"])


def machine() -> dict[str, Any]:
    """The machine in words: no names, no paths. How busy it was stands with each claim."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 0.0
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "versions": versions(),
    }


def _merged(data: dict[str, Any], kind: str, entry: dict[str, Any]) -> None:
    known = data.setdefault(kind, [])
    place = next((i for i, other in enumerate(known) if other["name"] == entry["name"]), len(known))
    known[place : place + 1] = [entry]
    shown = {key: value for key, value in entry.items() if key not in ("ratios", "points", "measured")}
    print(json.dumps(shown), flush=True)
