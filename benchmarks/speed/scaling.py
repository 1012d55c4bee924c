"""Curves, not points: how time and memory grow with the number of inputs, of sites, of tokens and the model's size.

Each point runs in a process of its own: the median time of three runs, and the peak of the resident memory in a fourth
beyond what the process had before; there memory that is freed goes back at once, so that the peak is what was in use.
The exponent is the slope of the logarithms. Needs Linux and its C library.

    OMP_NUM_THREADS=1 python benchmarks/speed/scaling.py
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from side_by_side import opened, tokens  # finds claims

from claims import curve  # isort: skip

from causalmad.signatures import AttributionPatching, ExactAblation

POINTS = {
    "inputs": (32, 64, 128, 256, 512),
    "sites": (8, 16, 32, 64),
    "tokens": (16, 32, 64, 128, 256),
    "width": (64, 128, 256, 512),
}


def first_order(inputs: int = 64, length: int = 32, width: int = 128, sites: int = 8) -> Callable[[], Any]:
    """Attribution patching of all heads and MLPs."""
    options = {"n_embd": width, "n_head": sites // 4 if sites > 4 else 1, "n_layer": 4, "n_positions": 256}
    module, model = opened("small", 16, **options)
    fitted = AttributionPatching(("heads", "mlps"), baseline="zero").fit(model, tokens(module, 24, length, seed=1))
    data = tokens(module, inputs, length)
    return lambda: fitted(data)


def exact(inputs: int = 16, length: int = 32, width: int = 128, sites: int = 8) -> Callable[[], Any]:
    """Exact patching of all heads, each as a whole."""
    options = {"n_embd": width, "n_head": sites // 4 if sites > 4 else 1, "n_layer": 4, "n_positions": 256}
    module, model = opened("small", 16, **options)
    spec = ExactAblation("heads", by_position=False, donors=1)
    fitted = spec.fit(model, tokens(module, 8, length, seed=1))
    data = tokens(module, inputs, length)
    return lambda: fitted(data)


METHODS = {"first-order attribution": first_order, "exact patching": exact}


def point(method: str, options: dict[str, int], pipe: Any) -> None:
    """Seconds and bytes of one point, in a process of its own."""
    run = METHODS[method](**options)
    taken = []
    for _ in range(3):
        started = time.process_time()
        run()
        taken.append(time.process_time() - started)
    library = ctypes.CDLL(None)
    library.mallopt(-3, 2**16)  # M_MMAP_THRESHOLD: from 64 KiB on, memory is the system's own
    gc.collect()
    library.malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak counts from here
    run()
    grown = status("VmHWM") - before
    pipe.send((median(taken), grown))


def status(field: str) -> float:
    """Megabytes that the kernel says of this process."""
    (found,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found) * 1024 / 1e6


def measured(method: str, options: dict[str, int]) -> tuple[float, float]:
    """Seconds of processor time and peak megabytes."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=point, args=(method, options, there))
    process.start()
    found: tuple[float, float] = here.recv()
    process.join()
    return found


def exponent(at: tuple[int, ...], values: list[float]) -> float:
    """Slope of the logarithms."""
    return float(np.polyfit(np.log(at), np.log(np.maximum(values, 1e-9)), 1)[0])


def main() -> None:
    """Measure, and record."""
    names = {"inputs": "inputs", "sites": "sites", "tokens": "length", "width": "width"}
    for method in METHODS:
        for of, points in POINTS.items():
            found = [measured(method, {names[of]: at}) for at in points]
            seconds, megabytes = map(list, zip(*found, strict=True))
            curve(
                {
                    "name": f"{method}, against {of}",
                    "of": of,
                    "setting": "4 layers, width 128, 8 heads, 32 tokens, batches of 16, but for what is varied",
                    "points": [
                        {"at": at, "seconds": round(s, 4), "megabytes": round(m, 1)}
                        for at, s, m in zip(points, seconds, megabytes, strict=True)
                    ],
                    "exponents": {"seconds": exponent(points, seconds), "megabytes": exponent(points, megabytes)},
                }
            )


if __name__ == "__main__":
    main()
