"""Every example runs, shows what it says (it exits with a message otherwise), and is listed."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from causalmad.tasks.cache import cache_folder

FOLDER = Path(__file__).parents[1] / "examples"
# The task whose network an example needs: quick once it is in the cache, and slow as long as it has to be trained.
TASKS = {
    "first_detector": "gate-digits",
    "scrubbing_detector": "planted-routes",
    "discovery_then_detection": "induction-lookup",
}
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


def marks(name):
    kept = name not in TASKS or any((cache_folder() / "tasks").glob(f"{TASKS[name]}-[0-9]*-0"))
    return () if kept else (pytest.mark.slow,)


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in NAMES])
def test_it_runs(name, capsys):
    state = torch.get_rng_state()
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out
    assert torch.equal(torch.get_rng_state(), state)


def test_all_are_listed():
    text = (FOLDER / "README.md").read_text()
    assert all(f"({name}.py)" in text for name in NAMES) and set(TASKS) <= set(NAMES)
