"""The page on adversaries shows what the records say, and what it says in words is so."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from causalmad.detectors import RECOMMENDED

ROOT = Path(__file__).parents[3]


@pytest.fixture
def attack_tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("attack_tables")


@pytest.fixture(scope="module")
def kept():
    return json.loads((ROOT / "benchmarks" / "attacks.json").read_text(encoding="utf-8"))


def records(kept, **wanted):
    every = [record for job in kept["jobs"].values() for record in job if "auroc" in record]
    return [record for record in every if all(record.get(key) == value for key, value in wanted.items())]


def test_the_tables_are_those_of_the_records(kept, attack_tables):
    text = attack_tables.PAGE.read_text(encoding="utf-8")
    made = attack_tables.tables(kept)
    assert attack_tables.filled(text, made) == text
    assert text.count("<!-- table: ") == text.count("<!-- end of table -->") == len(made)
    assert all(len(lines) > 2 for lines in made.values())


def test_every_detector_of_the_leaderboard_has_a_row(kept, attack_tables):
    board = (ROOT / "benchmarks" / "leaderboard.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in board for name in attack_tables.DETECTORS)
    rows = attack_tables.tables(kept)["hidden"]
    assert [row.split("`")[1] for row in rows[4:]] == list(attack_tables.DETECTORS)


def test_recommended_keeps_nine_tenths_where_activations_are_attacked(kept, attack_tables):
    hidden = records(kept, attack="hidden", detector=RECOMMENDED)
    further = records(kept, attack="train: activations", detector=RECOMMENDED)
    assert {record["task"] for record in hidden} == set(attack_tables.HIDDEN)
    assert {record["task"] for record in further} >= set(attack_tables.TASKS)
    for group in (hidden, further):
        for task in {record["task"] for record in group}:
            areas = [record["auroc"] for record in group if record["task"] == task]
            # There the network itself falls below the share of right answers that tasks ask for.
            mean, worst = (0.90, 0.88) if task == "ambiguous-features" else (0.98, 0.95)
            assert np.mean(areas) >= mean, task
            assert min(areas) >= worst, task


def test_attacked_itself_it_falls(kept):
    found = records(kept, attack=f"train: {RECOMMENDED}", detector=RECOMMENDED, task="password-locked")
    assert len(found) == 5
    assert np.mean([record["auroc"] for record in found]) < 0.75
    assert np.mean([record["tpr at 0.01"] for record in found]) < 0.2


def test_limits_on_the_loss_were_held(kept):
    limited = [record for record in records(kept) if "loss within" in record["attack"]]
    assert limited
    for record in limited:
        assert record["loss risen by"] <= float(record["attack"].rpartition(" ")[2]), record["attack"]
