"""Damaged files end in named errors or right results; the whole campaign is `python -m tests.faults`."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as draws

from tests.faults import detectors, plain
from tests.faults.__main__ import page
from tests.faults.watch import Fault, judge

SEEDS = draws.integers(0, 10**6)


def require_answered(kind: str, name: str, seed: int) -> None:
    with TemporaryDirectory() as folder:
        attempt = detectors.attempt if kind == "detector" else plain.TARGETS[kind]
        how, use = attempt(*([name] if kind == "detector" else []), random.Random(seed), Path(folder))
        found = judge(use, Path(folder))
    assert found.kind != "fault", f"{kind} {name}, seed {seed}, {how}: {found.detail}"


@pytest.mark.parametrize("name", detectors.names())
def test_a_damaged_detector_is_refused_or_right(name: str) -> None:
    @settings(max_examples=12, deadline=None)
    @for_all(SEEDS)
    def holds(seed: int) -> None:
        require_answered("detector", name, seed)

    holds()


@pytest.mark.parametrize("kind", list(plain.TARGETS))
def test_damaged_plain_data_is_refused_or_right(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)

    @settings(max_examples=8 if kind in ("log", "shard") else 15, deadline=None)
    @for_all(SEEDS)
    def holds(seed: int) -> None:
        require_answered(kind, "", seed)

    holds()


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    """Each kind of fault is a fault: a watch that sees nothing would pass everything."""
    import subprocess
    import sys

    def outside() -> None:
        (tmp_path.parent / "outside.txt").write_text("x")

    def wrong() -> None:
        raise Fault("another score")

    for attempt, said in (
        (outside, "outside.txt"),
        (lambda: subprocess.run([sys.executable, "-c", ""], check=True), "subprocess.Popen"),
        (lambda: [].pop(), "IndexError"),
        (lambda: bytearray(b"x") * (5 << 28) and None, "GiB"),
        (wrong, "another score"),
    ):
        found = judge(attempt, tmp_path)
        assert found.kind == "fault" and said in found.detail, (said, found)
    (tmp_path.parent / "outside.txt").unlink()
    assert judge(lambda: None, tmp_path).kind == "right"


def test_the_page_has_the_figures_of_the_campaign() -> None:
    root = Path(__file__).parents[2]
    data = json.loads((root / "benchmarks" / "faults.json").read_text())
    text = (root / "docs" / "explanation" / "faults.md").read_text()
    assert page(data) in text
    assert data["total"]["failed"] == 0
    for kind, least in (("mutations/", 10_000), ("kills/", 200)):
        assert sum(each["tried"] for name, each in data["kinds"].items() if name.startswith(kind)) >= least
