"""Alignment, on a network in which we put a variable ourselves, and beside pyvene's own way of intervening."""

import copy

import networkx as nx
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from causalmad.errors import HypothesisError, SiteError
from causalmad.hypotheses import OUTPUT, Hypothesis, interchange_accuracy
from causalmad.hypotheses.alignment import align_variable
from causalmad.hypotheses.bench import Bench
from causalmad.hypotheses.counterfactuals import Counterfactuals
from causalmad.models import open_model
from causalmad.subspaces import Subspace
from causalmad.testing.traces import untouched

BASE, WIDTH = 5, 16


class Adder(nn.Module):
    """The sum of two numbers below five, each an angle in a plane of its own of a rotated activation."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.turn = nn.Parameter(torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draw))[0])
        self.mix = nn.Identity()

    def forward(self, x):
        angle = 2 * np.pi * torch.arange(2 * BASE - 1) / (2 * BASE + 1)
        numbers = x.unflatten(-1, (3, BASE)) @ torch.stack([angle[:BASE].cos(), angle[:BASE].sin()], -1)
        read = self.mix(torch.nn.functional.pad(numbers.flatten(1), (0, WIDTH - 6)) @ self.turn.T) @ self.turn
        real = read[:, 0] * read[:, 2] - read[:, 1] * read[:, 3]
        imaginary = read[:, 0] * read[:, 3] + read[:, 1] * read[:, 2]
        return 8 * (real[:, None] * angle.cos() + imaginary[:, None] * angle.sin())


def number_a(x):
    return int(x["input"][:BASE].argmax())


def number_b(x):
    return int(x["input"][BASE : 2 * BASE].argmax())


def total(a, b):
    return a + b


def sum_claim(at="mix"):
    graph = nx.DiGraph(name="sum")
    graph.add_node("a", at=at, value=number_a)
    graph.add_node("b", at=at, value=number_b)
    graph.add_edges_from([("a", OUTPUT), ("b", OUTPUT)])
    graph.add_node(OUTPUT, mechanism=total)
    return Hypothesis(graph)


@pytest.fixture(scope="module")
def adder():
    return Adder().train()


@pytest.fixture(scope="module")
def numbers():
    draw = torch.Generator().manual_seed(1)
    return one_hot(torch.randint(BASE, (200, 3), generator=draw), BASE).float().flatten(1)


@pytest.mark.parametrize(("method", "engine"), [("das", "hooks"), ("das", "nnsight"), ("boundless", "hooks")])
def test_the_planted_plane_is_found(adder, numbers, method, engine):
    model = open_model(adder, engine=engine)
    steps = 150
    found = align_variable(model, sum_claim(), "a", numbers, dimensions=2, method=method, steps=steps, pairs=200)
    assert found.aligned.share >= 0.95 and found.aligned.changed > 0.7
    assert max(found.whole.share, found.random.share, found.control.share) < 0.5
    assert found.losses[-1] < found.losses[0] / 2 and len(found.losses) == steps
    inside = (adder.turn[:, :2].T @ found.subspace.basis).square().sum() / 2
    assert inside > 0.8, "how much of the plane lies in the subspace"
    assert found.subspace.dimensions == 2 if method == "das" else 2 <= found.subspace.dimensions <= 8
    assert "control" in str(found) and f"{found.aligned.share:.3f}" in str(found)


def test_the_result_is_a_site_like_any_other(adder, numbers, tmp_path):
    found = align_variable(adder, sum_claim(), "a", numbers, dimensions=2, control=False, pairs=100)
    both = align_variable(adder, found.hypothesis, "b", numbers, site="mix", dimensions=2, pairs=100)
    assert found.control is None and both.control is not None
    exact = interchange_accuracy(adder, both.hypothesis, numbers)
    assert exact["a"].share >= 0.95 and exact["b"].share >= 0.95
    report = both.hypothesis.check(adder, numbers)
    assert report.ok and report.preserved.recovered > 0.9
    text = both.hypothesis.to_json()
    assert Hypothesis.from_json(text, functions=both.hypothesis) == both.hypothesis


def test_same_seed_same_bits_and_nothing_is_left(adder, numbers):
    model = copy.deepcopy(adder)
    model.turn.grad = torch.ones_like(model.turn)
    handle = model.mix.register_forward_hook(lambda *_: None)
    with untouched(model, "alignment"):
        first, second, other = (
            align_variable(model, sum_claim(), "a", numbers, dimensions=2, steps=5, pairs=20, seed=seed)
            for seed in (0, 0, 1)
        )
    handle.remove()
    assert first.subspace == second.subspace and first.losses == second.losses
    assert first.subspace != other.subspace
    with torch.inference_mode():
        again = align_variable(model, sum_claim(), "a", numbers, dimensions=2, steps=5, pairs=20)
    assert again.subspace == first.subspace


def test_progress_is_told(adder, numbers):
    told = []
    align_variable(
        adder, sum_claim(), "a", numbers, steps=3, pairs=9, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(i, 6) for i in range(1, 7)]


def answer_of(x):
    return int(x["answer"])


def same(said):
    return said


@pytest.fixture
def answered(model_of):
    """A function from a family to its model, prompts of differing length with the model's answers, and a claim."""

    def get(name, at, count=150):
        model = model_of(name)
        draw = torch.Generator().manual_seed(2)
        rows = [
            {"input_ids": torch.randint(2, 50, (int(size),), generator=draw)}
            for size in torch.randint(3, 7, (count,), generator=draw)
        ]
        opened = open_model(model)
        known = opened.inputs(rows)
        (batch,) = opened.batches(known, size=count)
        answers = opened.logits(batch).argmax(-1).tolist()
        graph = nx.DiGraph(name="its own answer")
        graph.add_node("said", at=at, value=answer_of)
        graph.add_edge("said", OUTPUT)
        graph.add_node(OUTPUT, mechanism=same)
        return opened, [{**row, "answer": a} for row, a in zip(rows, answers, strict=True)], Hypothesis(graph)

    return get


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("gpt2", "transformer.h.1@-1"),
        ("neox", "gpt_neox.layers.1@-1"),
        ("llama", "model.layers.1.self_attn#head=0,1,2,3@-1"),
        ("bert", "bert.encoder.layer.1@0"),
        ("gpt2", "transformer.h.0"),
    ],
)
def test_transformers_are_searched_at_any_site(answered, name, at):
    model, rows, claim = answered(name, at)
    found = align_variable(
        model, claim, "said", rows, dimensions=16, steps=60, batch_size=48, pairs=300, learning_rate=0.03, control=False
    )
    assert found.losses[-1] < found.losses[0]
    assert found.aligned.share >= found.random.share
    assert found.site.subspace is not None and str(model.sites(at)[0]) == str(found.site.within(None))


@pytest.mark.parametrize(
    ("name", "path"), [("gpt2", "transformer.h.1"), ("neox", "gpt_neox.layers.1"), ("llama", "model.layers.1")]
)
def test_a_swap_in_the_subspace_is_pyvenes_rotated_swap(answered, name, path):
    import pyvene

    model, rows, _ = answered(name, f"{path}@3", count=8)
    rows = [{**row, "input_ids": torch.arange(2 + i, 8 + i)} for i, row in enumerate(rows)]
    with torch.random.fork_rng():
        layer = pyvene.LowRankRotatedSpaceIntervention(embed_dim=32, low_rank_dimension=3)
    basis = layer.rotate_layer.weight.detach()
    site = model.sites(f"{path}@3")[0].within(Subspace(basis))
    bench = Bench.of(model, model.inputs(rows))
    base, source = np.arange(4), np.arange(4, 8)
    _, values = bench.run(source, read=[site], output=False)
    ours, _ = bench.run(base, values)

    plain = copy.deepcopy(model.module).eval()
    theirs = pyvene.IntervenableModel({"component": f"{path}.output", "intervention": layer}, plain)
    ids = torch.stack([row["input_ids"] for row in rows])
    _, found = theirs({"input_ids": ids[:4]}, [{"input_ids": ids[4:]}], {"sources->base": 3})
    torch.testing.assert_close(ours, found.logits[:, -1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["das", "boundless"])
def test_training_is_pyvenes_own_training(answered, method):
    """The twin: pyvene hooks the whole model, runs sources and bases, and its gradients go through all of it."""
    import pyvene

    at, steps, count = "transformer.h.0@3", 6, 60
    _, rows, claim = answered("gpt2", at, count=count)
    draw = torch.Generator().manual_seed(7)
    ids = torch.randint(2, 50, (count, 6), generator=draw)
    rows = [{**row, "input_ids": tokens} for row, tokens in zip(rows, ids, strict=True)]
    model = open_model(copy.deepcopy(answered("gpt2", at)[0].module))
    options = {"dimensions": 4, "method": method, "steps": steps, "batch_size": 16, "pairs": 10, "control": False}
    ours = align_variable(model, claim, "said", rows, learning_rate=0.02, width_penalty=0.5, **options)

    order = np.random.default_rng([0, 17]).permutation(count)
    rng = np.random.default_rng([0, 19])
    answers = Counterfactuals.of(claim, "said", model.inputs(rows))
    plan = [answers.balanced(order[18:], 16, rng) for _ in range(steps)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if method == "das":
            layer = pyvene.LowRankRotatedSpaceIntervention(embed_dim=32, low_rank_dimension=4)
            groups = [{"params": layer.rotate_layer.parameters(), "lr": 0.02}]
        else:
            layer = pyvene.BoundlessRotatedSpaceIntervention(embed_dim=32)
            layer.intervention_population.data = torch.arange(32) + 0.5
            rotation, boundary = layer.rotate_layer.parameters(), [layer.intervention_boundaries]
            groups = [{"params": rotation, "lr": 0.02}, {"params": boundary, "lr": 0.06}]
    adam = torch.optim.Adam(groups)
    slower = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.02, total_iters=steps)
    plain = copy.deepcopy(model.module).eval()
    theirs = pyvene.IntervenableModel({"component": "transformer.h.0.output", "intervention": layer}, plain)
    losses = []
    for step, pairs in enumerate(plan):
        if method == "boundless":
            layer.set_temperature(torch.tensor(2.0 + (0.1 - 2.0) * step / (steps - 1)))
        _, found = theirs({"input_ids": ids[pairs.base]}, [{"input_ids": ids[pairs.source]}], {"sources->base": 3})
        loss = cross_entropy(found.logits[:, -1], torch.as_tensor(pairs.expected))
        losses.append(float(loss.detach()))
        adam.zero_grad()
        (loss + (0.5 * layer.intervention_boundaries.clamp(1e-3, 1).sum() if method == "boundless" else 0)).backward()
        adam.step()
        slower.step()
    np.testing.assert_allclose(ours.losses, losses, rtol=1e-4)
    basis = layer.rotate_layer.weight.detach()[:, : ours.subspace.dimensions]
    torch.testing.assert_close(ours.subspace.basis @ ours.subspace.basis.T, basis @ basis.T, rtol=1e-3, atol=1e-3)


def halved(a, b):
    return 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"claim": "aa"}, "no node 'aa'"),
        ({"dimensions": 17}, "1 to 16"),
        ({"dimensions": 0}, "1 to 16"),
        ({"method": "dsa"}, "das or boundless"),
        ({"steps": 0}, "steps >= 1"),
        ({"held_out": 0.001}, "cannot be split"),
        ({"site": ("mix", "")}, "2 sites"),
    ],
)
def test_what_cannot_be_aligned(adder, numbers, options, message):
    with pytest.raises(HypothesisError, match=message):
        align_variable(adder, sum_claim(), **{"claim": "a", "inputs": numbers, "steps": 2, **options})


def test_claims_that_cannot_be_aligned(adder, numbers):
    with pytest.raises(SiteError, match="no module"):
        align_variable(adder, sum_claim("mixx"), "a", numbers, steps=2)
    without = sum_claim().to_networkx()
    del without.nodes[OUTPUT]["mechanism"]
    with pytest.raises(HypothesisError, match="predicts no answer"):
        align_variable(adder, Hypothesis(without), "a", numbers, steps=2)
    never = sum_claim().to_networkx()
    never.nodes[OUTPUT]["mechanism"] = halved
    with pytest.raises(HypothesisError, match="no answer changes"):
        align_variable(adder, Hypothesis(never), "a", numbers, steps=2)
    beyond = sum_claim().to_networkx()
    beyond.nodes[OUTPUT]["mechanism"] = lambda a, b: 5 * a
    with pytest.raises(HypothesisError, match="one of 9 classes"):
        align_variable(adder, Hypothesis(beyond), "a", numbers, steps=9)


def test_a_broken_pyvene_is_named(adder, numbers, monkeypatch):
    import pyvene

    def fails(**options):
        raise RuntimeError("on purpose")

    monkeypatch.setattr(pyvene, "LowRankRotatedSpaceIntervention", fails)
    with pytest.raises(HypothesisError, match=r"pyvene makes no das intervention.*on purpose"):
        align_variable(adder, sum_claim(), "a", numbers, steps=2)
