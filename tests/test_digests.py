import tracemalloc

import numpy as np
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as draws

from causalmad.digests import ABSENT, Counts, Digests, first_rows


@settings(max_examples=60, deadline=None)
@for_all(parts=draws.lists(draws.lists(draws.integers(0, 400), max_size=40), max_size=12), seed=draws.integers(0, 9))
def test_it_is_a_dict(parts, seed):
    known = np.random.default_rng(seed).integers(0, 256, (401, 16), dtype=np.uint8)
    known[:200, :8] = known[200:400, :8]  # halves that are the same
    known[7] = 0
    table, plain, number = Digests(), {}, 0
    for part in parts:
        fresh = [i for i in dict.fromkeys(part) if i not in plain and (i + 200) % 400 not in plain and i < 200]
        table.add(known[fresh], np.arange(number, number + len(fresh)))
        plain |= {i: number + at for at, i in enumerate(fresh)}
        number += len(fresh)
        assert table.find(known).tolist() == [plain.get(i, ABSENT) for i in range(401)]
        assert len(table) == len(plain)
    assert table.find(known[:0]).tolist() == []


def test_an_entry_takes_twenty_four_bytes():
    table = Digests()
    draw = np.random.default_rng(0)
    for start in range(0, 10_000, 100):
        table.add(draw.integers(0, 256, (100, 16), dtype=np.uint8), np.arange(start, start + 100))
    assert len(table) == 10_000 and len(table._runs) < 15
    assert sum(array.nbytes for run in table._runs for array in run) == 24 * 10_000


@settings(max_examples=60, deadline=None)
@for_all(parts=draws.lists(draws.lists(draws.integers(0, 60), max_size=50), max_size=12))
def test_counts_are_those_of_one_after_another(parts):
    known = np.random.default_rng(1).integers(0, 256, (61, 16), dtype=np.uint8)
    known[3], known[5, 4:] = 0, 0
    counts, plain = Counts(), [0] * 61
    for part in parts:
        expected = []
        for i in part:
            expected.append(plain[i])
            plain[i] += 1
        assert counts.add(known[part]).tolist() == expected
    rows = [i for part in parts for i in part]
    assert first_rows(known[rows]).tolist() == [at for at, i in enumerate(rows) if i not in rows[:at]]


def test_no_copy_is_as_large_as_the_table():
    counts = Counts()
    draw = np.random.default_rng(0)
    tracemalloc.start()
    try:
        for _ in range(200):
            counts.add(draw.integers(0, 256, (2048, 16), dtype=np.uint8))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 34 * 200 * 2048 and peak < held + 24 * 2**19
