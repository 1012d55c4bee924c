"""A process is killed at any point, or several work at once: no row is lost, none is there twice, all are right."""

import contextlib
import os
import random
import signal
import time

import numpy as np
import pytest

import causalmad as cm
from causalmad.extraction import shards
from tests.extraction.counted import made, rows_on_disk

ROWS, SHARD, BATCH = 120, 8, 4


def in_a_child(work):
    """The process id of a child that does some work, and never comes back into the tests."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def ended(child):
    """How a child ended: 0, an exit code, or minus the signal that killed it."""
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


@pytest.fixture
def ledger(tmp_path):
    """A file to which every run of the model writes its rows, whoever runs it."""
    path = tmp_path / "ledger"
    out = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    yield path, out
    os.close(out)


def computed(path):
    return sum(map(int, path.read_text().split()))


def require_sound(folder, fitted, fresh, expected):
    """The cache holds every input's row once, and no other, with the bits of an undisturbed run."""
    keys, _, files = rows_on_disk(folder)
    assert len(np.unique(keys, axis=0)) == len(keys) == len(fresh)
    found = cm.extract(fitted, fresh, cache=folder, shard=SHARD)
    assert found.computed == 0 and files == -(-len(fresh) // SHARD)
    assert found.values.tobytes() == expected.tobytes()


def die_at_step(number):
    """Kill this process at a step of writing: whichever is the ``number``-th from now on."""
    count = 0

    def step():
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    plain = {name: getattr(os, name) for name in ("fsync", "replace")}

    def fsync(file):
        step()  # written, not yet on the disk
        plain["fsync"](file)
        step()  # on the disk, under a temporary name

    def replace(a, b):
        plain["replace"](a, b)
        step()  # under its own name

    os.fsync, os.replace = fsync, replace
    written = shards.write_shard

    def write_shard(folder, shard):
        step()  # computed, nothing written
        return written(folder, shard)

    import causalmad.extraction.cache as cache

    cache.write_shard = write_shard


def test_a_kill_at_every_step_of_writing_costs_one_shard_at_most(tmp_path, ledger):
    fitted, fresh = made(ROWS, batch_size=BATCH)
    expected = fitted.signature(fresh).values
    path, out = ledger
    kills = 0
    for _ in range(400):
        # Four steps write a shard, and three the manifest before the first.
        at = random.Random(kills).randint(1, 9) if kills % 2 else 4 + kills % 8

        def work(at=at):
            fitted.model.module.out = out
            die_at_step(at)
            cm.extract(fitted, fresh, cache=tmp_path / "cache", shard=SHARD)

        if (code := ended(in_a_child(work))) == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert kills >= 8
    assert computed(path) <= ROWS + kills * SHARD
    require_sound(tmp_path / "cache", fitted, fresh, expected)


def kill_at_random_moments(folder, ledger, seed, rows):
    """Kill a run again and again, wherever it is, until one comes to its end; how many were killed."""
    fitted, fresh = made(rows, batch_size=BATCH)
    expected = fitted.signature(fresh).values
    path, out = ledger
    draw = random.Random(seed)

    def work():
        fitted.model.module.out = out
        cm.extract(fitted, fresh, cache=folder, shard=SHARD)

    started = time.perf_counter()
    assert ended(in_a_child(lambda: cm.extract(fitted, fresh, shard=SHARD, cache=folder / "whole"))) == 0
    whole = time.perf_counter() - started
    kills = 0
    for _ in range(1000):
        child = in_a_child(work)
        time.sleep(draw.uniform(0, 0.6 * whole))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        if (code := ended(child)) == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert computed(path) <= rows + kills * SHARD
    import shutil

    shutil.rmtree(folder / "whole")
    require_sound(folder, fitted, fresh, expected)
    return kills


@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_moments_cost_one_shard_each_at_most(tmp_path, ledger, seed):
    (tmp_path / "cache").mkdir()
    kill_at_random_moments(tmp_path / "cache", ledger, seed, 240)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 33))
def test_many_kills_at_random_moments(tmp_path, ledger, seed):
    (tmp_path / "cache").mkdir()
    kill_at_random_moments(tmp_path / "cache", ledger, seed, 600)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_a_cache_and_its_work(tmp_path, ledger, processes):
    rows = 400
    fitted, fresh = made(rows, batch_size=BATCH)
    expected = fitted.signature(fresh).values
    path, out = ledger

    def work():
        fitted.model.module.out = out
        found = cm.extract(fitted, fresh, cache=tmp_path / "cache", shard=SHARD)
        assert found.values.tobytes() == expected.tobytes()

    children = [in_a_child(work) for _ in range(processes)]
    assert [ended(child) for child in children] == [0] * processes
    require_sound(tmp_path / "cache", fitted, fresh, expected)
    assert computed(path) < processes * rows


def test_what_a_killed_process_had_begun_is_swept_up_later(tmp_path):
    fitted, fresh = made(16)
    found = cm.extract(fitted, fresh, cache=tmp_path)
    old, young = (found.kept.folder / f".{name}.safetensors.1-ab" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert cm.extract(fitted, fresh, cache=tmp_path).computed == 0
    assert not old.exists() and young.exists()
