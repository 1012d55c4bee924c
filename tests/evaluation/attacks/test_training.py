import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from causalmad.detectors import RECOMMENDED, detector
from causalmad.errors import SpecError, TaskError
from causalmad.evaluation.attacks import TrainTime
from causalmad.evaluation.attacks.graphs import GraphModel
from causalmad.evaluation.attacks.limits import Limit
from causalmad.evaluation.attacks.penalties import RelativePenalty
from causalmad.evaluation.attacks.training import looks_of
from causalmad.models import open_model
from causalmad.references import RelativeMahalanobis
from causalmad.signatures import Activations, GramDeviation, RelevancePatching, ResamplingProfile
from causalmad.tasks import GateDigits

sys.path.insert(0, str(Path(__file__).parent))
from small import Small


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def gap(data, name):
    """How far the anomalies' typical score lies from the normal inputs', in deviations, or of logarithms."""
    scores = detector(name).fit(data.model, data.trusted).score(data.test)
    usual = scores[~data.labels]
    scores = np.arcsinh((scores - usual.mean()) / usual.std()) if "relative" in name else np.log(scores)
    return abs(float(scores[data.labels].mean() - scores[~data.labels].mean()))


@pytest.mark.parametrize("name", ["activations", "relevance-patching", "activations-relative", "beatrix"])
def test_the_target_sees_less_and_the_answers_stay(monkeypatch, folder, name):
    monkeypatch.setenv("CAUSALMAD_CACHE", str(folder))
    before = TrainTime((name,), steps=1, weight=0.0).load(Small())
    weight = 3.0 if "relative" in name else 1.0  # there is less to hide from it here
    after = TrainTime((name,), steps=120, weight=weight, batch=60, looked=60, rate=5e-3).load(Small())
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
    looks = looks_of(["activations", "views-and-gram-fisher", "activations-two-sided", "activations-relative"])
    assert [type(look.signature) for look in looks] == [
        Activations,
        RelevancePatching,
        ResamplingProfile,
        GramDeviation,
        Activations,
    ]
    assert [look.relative for look in looks] == [False, False, False, False, True]


def test_the_recommended_detector_can_be_attacked_by_that_name():
    assert looks_of(["recommended"]) == looks_of([RECOMMENDED])


def test_signatures_are_fitted_anew_as_often_as_asked_each_time_with_other_donors(monkeypatch, tmp_path):
    monkeypatch.setenv("CAUSALMAD_CACHE", str(tmp_path))
    fitted, fit = [], ResamplingProfile.fit

    def noted(self, model, trusted, seed=0):
        found = fit(self, model, trusted, seed)
        fitted.append((seed, found.donors.inputs.main, model.module[0].weight.detach().clone()))
        return found

    monkeypatch.setattr(ResamplingProfile, "fit", noted)
    TrainTime(("resampling-profile",), steps=5, batch=40, looked=40, refit=2).load(Small())
    seeds, donors, weights = zip(*fitted, strict=True)
    assert len(set(seeds)) == len(seeds) == 3
    assert not any(torch.equal(first, then) for first, then in pairwise(donors))
    assert not any(torch.equal(first, then) for first, then in pairwise(weights))


def test_what_cannot_be_attacked_is_named():
    with pytest.raises(TaskError, match="trainable"):
        TrainTime().load(GateDigits())
    with pytest.raises(SpecError):
        TrainTime(())


def test_sparing_the_task_keeps_answers_that_hiding_would_cost(monkeypatch, folder):
    monkeypatch.setenv("CAUSALMAD_CACHE", str(folder))
    attack = TrainTime(("activations",), steps=80, batch=60, looked=60, weight=3.0, rate=5e-3)
    free, spared = (replace(attack, spare=spare).load(Small()).card for spare in (None, 0.01))
    assert min(free["accuracy"].values()) < 0.85
    assert min(spared["accuracy"].values()) > min(free["accuracy"].values()) + 0.08
    assert spared["loss risen by"] <= 0.01 < free["loss risen by"]


def test_the_last_network_within_the_limit_is_kept():
    model = torch.nn.Linear(3, 2, bias=False).requires_grad_(False)
    opened = open_model(model)
    (batch,) = opened.batches(opened.inputs(torch.eye(3)))
    answers = torch.tensor([0, 1, 0])
    model.weight.zero_()  # a loss of log 2
    limit = Limit(GraphModel.of(opened), [(batch, answers)], 0.5)
    assert limit.before == pytest.approx(np.log(2))
    for wrong in (0.2, 0.4, 0.45):  # rises of 0.22, 0.48 and 0.55
        model.weight.copy_(torch.tensor([[-wrong, wrong, -wrong], [wrong, -wrong, wrong]]))
        limit.look()
    limit.keep()
    assert model.weight.abs().unique().item() == pytest.approx(0.4)
    assert limit.rise == pytest.approx(np.log1p(np.exp(0.8)) - np.log(2))


def test_the_relative_penalty_looks_at_the_distance_of_the_reference():
    """On the first batch, with the reference's own shrinkage, it is the very same."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, 120)
    rows = rng.standard_normal((120, 6)) @ rng.standard_normal((6, 6)) + 3 * np.eye(6)[classes]
    fitted = RelativeMahalanobis().fit(rows[:90], classes=classes[:90])
    penalty = RelativePenalty(fitted.within.shrinkage)
    found = penalty.scores(torch.from_numpy(rows), torch.arange(120) < 90, torch.from_numpy(classes))
    np.testing.assert_allclose(found.numpy(), -fitted.score_samples(rows), rtol=1e-8, atol=1e-8)


def test_the_relative_penalty_is_nothing_where_both_groups_are_alike_and_falls_downhill():
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 5, generator=draw).double()
    anomalous, predicted = torch.arange(200) < 100, torch.arange(200) % 2
    twice = torch.cat([rows[100:], rows[100:]])
    assert RelativePenalty()(twice, anomalous, predicted).item() == pytest.approx(0, abs=1e-20)
    moved = (rows + 5 * anomalous[:, None]).requires_grad_()
    before = RelativePenalty()(moved, anomalous, predicted)
    (slope,) = torch.autograd.grad(before, moved)
    with torch.no_grad():
        after = RelativePenalty()(moved - 0.1 * slope / slope.norm(), anomalous, predicted)
    assert 0 < after.item() < before.item()
