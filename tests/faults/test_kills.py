"""A few kills of each victim that is one process; `python -m tests.faults --only kills` does 200."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from causalmad.extraction import cache
from causalmad.extraction.shards import Shard
from tests.faults import kills
from tests.faults.kills import VICTIMS, campaign
from tests.faults.watch import Fault

ONE_PROCESS = [name for name in VICTIMS if name not in ("bench", "bench, two processes")]


@pytest.mark.parametrize("name", ONE_PROCESS)
def test_what_was_killed_goes_on(name: str) -> None:
    found = campaign(VICTIMS[name](), 2, 1, most_kills=2)
    assert found["tried"] == 2 and not found["failed"], found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bench", "bench, two processes"])
def test_a_bench_that_was_killed_goes_on(name: str) -> None:
    found = campaign(VICTIMS[name](), 2, 1, most_kills=2)
    assert found["tried"] == 2 and not found["failed"], found


@pytest.mark.slow
def test_a_detector_that_a_kill_would_lose_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what reads a detector that was set aside, a kill between two renames loses it: the campaign says so."""
    monkeypatch.setattr("causalmad.store._set_aside", lambda path: [])
    monkeypatch.setattr(kills.Save, "done", lambda self, folder: None)
    victim = kills.Save()
    assert any(campaign(victim, 12, seed)["failed"] for seed in range(5))


@pytest.mark.parametrize("harm", ["twice", "lost", "of no input"])
def test_rows_on_disk_are_counted_and_not_only_read_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, harm: str
) -> None:
    """Shards that hold a row twice, or one of no input, read as they should; and a row may be on no disk at all."""
    written = cache.write_shard

    def write_shard(folder: Path, shard: Shard) -> str:
        if harm == "lost":
            return written(folder, Shard(shard.keys[1:], shard.values[1:]))
        if harm == "twice":
            written(folder, Shard(shard.keys[::-1], shard.values[::-1]))
        else:
            written(folder, Shard(shard.keys[:1] ^ 255, shard.values[:1]))
        return written(folder, shard)

    victim = kills.Extraction()
    victim.prepare(tmp_path)
    victim.run(tmp_path)
    victim.done(tmp_path)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(cache, "write_shard", write_shard)
    victim.run(tmp_path)
    with pytest.raises(Fault, match={"twice": "twice", "lost": "lost", "of no input": "no input"}[harm]):
        victim.done(tmp_path)
