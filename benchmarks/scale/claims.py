"""Claims and the figures that support or refute them, in ``benchmarks/results.json``."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from causalmad.provenance import versions
from causalmad.whole import write_whole

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results.json"


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
    entry = {
        "name": name,
        "value": round(value, 4),
        "limit": limit,
        "holds": value <= limit,
        "runs": len(values),
        "direction": "at most",
        "setting": setting,
        "note": f"{note}{'; ' if note else ''}load of the machine {os.getloadavg()[0]:.1f} at the end",
        "measured": [round(float(each), 4) for each in values],
        **more,
    }
    with (HERE / ".results.lock").open("w") as lock:  # several benchmarks may end at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        data = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        data.setdefault("machine", machine())
        claims = data.setdefault("claims", [])
        place = next((i for i, other in enumerate(claims) if other["name"] == name), len(claims))
        claims[place : place + 1] = [entry]
        write_whole(RESULTS, [json.dumps(data, indent=1), "\n"])
    print(f"{name}: {value:.4g}, at most {limit:g}: {'holds' if entry['holds'] else 'DOES NOT HOLD'}", flush=True)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory[0] / 2**20, 1) if memory else None,
        "threads": 1,
        "shared": "other processes ran at the same time",
        "versions": versions(),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
