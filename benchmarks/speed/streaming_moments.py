"""Claim: the mean and covariance of 10^6 rows of 768 cost at most 1.3 times their bare products, in little memory.

A round takes a tenth of the rows, in chunks of 4096, so that ten rounds make a whole; memory is the peak of a process
of its own that sees all chunks, beyond what the same process has at its start.

    OMP_NUM_THREADS=1 python benchmarks/speed/streaming_moments.py [--rounds 10]
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from collections.abc import Iterator

import numpy as np
from side_by_side import claim, ratios, side_by_side

from causalmad.moments import Moments

ROWS, COLUMNS, CHUNK = 10**6, 768, 4096


def chunks(rows: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Rows in chunks; a few of them are made, and given again and again."""
    draw = np.random.default_rng(seed)
    made = [draw.normal(size=(CHUNK, COLUMNS)).astype(np.float64) for _ in range(4)]
    for start in range(0, rows, CHUNK):
        yield made[start // CHUNK % 4][: min(CHUNK, rows - start)]


def products(parts: list[np.ndarray]) -> np.ndarray:
    """The least that any fit does."""
    total = np.zeros((COLUMNS, COLUMNS))
    for part in parts:
        total += part.T @ part
    return total


def peak(pipe: multiprocessing.connection.Connection) -> None:
    """Bytes beyond the start, in a process of its own."""
    parts = list(chunks(8 * CHUNK))
    parts[0].T @ parts[0]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Moments.of((parts[i % len(parts)] for i in range(ROWS // CHUNK // 10)), COLUMNS)
    pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def main() -> None:
    """Measure, and record."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=10)
    given = options.parse_args()
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=peak, args=(there,))
    process.start()
    extra = here.recv()
    process.join()
    parts = list(chunks(ROWS // 10))
    sides = {"ours": lambda: Moments.of(parts, COLUMNS), "bare": lambda: products(parts)}
    times = side_by_side(sides, given.rounds, warm=0)
    setting = f"{ROWS:,} rows of {COLUMNS} in double precision, chunks of {CHUNK}"
    claim("moments / bare X.T @ X in chunks", ratios(times, "ours", "bare"), 1.3, setting=setting)
    megabytes = [extra / 1e6]
    title = "moments: peak memory above the data chunk, MB"
    claim(title, {"wall": megabytes, "cpu": megabytes}, 300.0, setting=setting, note="a figure of memory, not a ratio")


if __name__ == "__main__":
    main()
