import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from causalmad.detectors import detector
from causalmad.errors import SpecError, TaskError
from causalmad.evaluation.attacks import TrainTime
from causalmad.evaluation.attacks.training import signatures_of
from causalmad.signatures import Activations, RelevancePatching, ResamplingProfile
from causalmad.tasks import GateDigits

sys.path.insert(0, str(Path(__file__).parent))
from small import Small


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def gap(data, name):
    """How far the anomalies' typical log score lies from the normal inputs'."""
    logs = np.log(detector(name).fit(data.model, data.trusted).score(data.test))
    return abs(float(logs[data.labels].mean() - logs[~data.labels].mean()))


@pytest.mark.parametrize("name", ["activations", "relevance-patching"])
def test_the_target_sees_less_and_the_answers_stay(monkeypatch, folder, name):
    monkeypatch.setenv("CAUSALMAD_CACHE", str(folder))
    before = TrainTime((name,), steps=1, weight=0.0).load(Small())
    after = TrainTime((name,), steps=120, batch=60, looked=60, rate=5e-3).load(Small())
    assert gap(after, name) < 0.75 * gap(before, name)
    assert after.card["accuracy"]["normal"] > 0.9
    assert after.card["accuracy before the attack"] == {"normal": 0.992, "anomalous": 0.989}


def test_the_same_attack_gives_the_same_network(monkeypatch, tmp_path):
    networks = []
    for place in "ab":
        monkeypatch.setenv("CAUSALMAD_CACHE", str(tmp_path / place))
        attack = TrainTime(("resampling-profile",), steps=3, batch=40, looked=40, refit=2)
        networks.append(attack.load(Small()).model.state_dict())
    assert all(bool((networks[0][key] == networks[1][key]).all()) for key in networks[0])


def test_several_detectors_are_their_signatures_each_once():
    kinds = [type(spec) for spec in signatures_of(["activations", "views-harmonic", "activations-two-sided"])]
    assert kinds == [Activations, RelevancePatching, ResamplingProfile]


def test_what_cannot_be_attacked_is_named():
    with pytest.raises(TaskError, match="trainable"):
        TrainTime().load(GateDigits())
    with pytest.raises(SpecError):
        TrainTime(())


def test_sparing_the_task_keeps_answers_that_hiding_would_cost(monkeypatch, folder):
    monkeypatch.setenv("CAUSALMAD_CACHE", str(folder))
    attack = TrainTime(("activations",), steps=80, batch=60, looked=60, weight=3.0, rate=5e-3)
    free, spared = (min(replace(attack, spare=spare).load(Small()).card["accuracy"].values()) for spare in (None, 0.01))
    assert free < 0.85
    assert spared > free + 0.08
