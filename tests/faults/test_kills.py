"""A few kills of each victim that is one process; `python -m tests.faults --only kills` does 200."""

from __future__ import annotations

import pytest

from tests.faults import kills
from tests.faults.kills import VICTIMS, campaign

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
