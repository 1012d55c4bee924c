import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

from causalmad import Inputs, open_model
from causalmad.errors import FitError
from causalmad.inputs import Batch
from causalmad.models.base import Run
from causalmad.signatures import AttributionPatching, RelevancePatching
from causalmad.signatures.relevance_patching import ruled
from causalmad.signatures.relevance_rules import rules
from causalmad.sites import Place
from causalmad.targets import ClassLogit, Divergence, TopMargin, bound
from causalmad.testing.toys import toy
from tests.signatures.families import BLOCKS, LAYERS, head_places, small
from tests.twins import attribution_patching as gradient_twin
from tests.twins import relevance_patching as twin

PLAIN = {"log": False, "normalise": False}


def table(fitted, inputs, group, kind="sum"):
    reduced = fitted.reduced(inputs)
    return reduced.values[:, [i for i, c in enumerate(reduced.columns) if c.block == f"{group} {kind} by place"]]


def first_batch(opened, inputs) -> Batch:
    return next(iter(opened.batches(inputs)))


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_the_mlp_equals_the_twin(baseline):
    made, model = small("mlp")
    fitted = RelevancePatching("blocks", baseline=baseline, **PLAIN).fit(open_model(made.model), made.trusted)
    baselines = {":input": made.trusted.main.mean(0)} if baseline == "mean" else {}
    for row, found in zip(made.fresh.main, table(fitted, made.fresh, "blocks")):
        target = gradient_twin.margin_of(int(model(row).argmax()))
        expected = twin.contributions("mlp", model, row, baselines, target)[":input"]
        sums = [float(expected[start:stop].sum()) for start, stop in made.fresh.blocks.values()]
        np.testing.assert_allclose(found, sums, atol=1e-5)


@pytest.mark.parametrize("baseline", ["zero", "mean"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_tokens_heads_mlps_and_residual_equal_the_twin(name, baseline):
    made, model = small(name)
    units = ("positions", "heads", "mlps", "residual")
    fitted = RelevancePatching(units, baseline=baseline, **PLAIN).fit(
        open_model(made.model, batch_size=3), made.trusted
    )
    tokens = {"gpt2": "transformer.wte", "llama": "model.embed_tokens"}[name]
    found = {group: table(fitted, made.fresh, group) for group in ("positions", "heads", "mlps", "residual 0")}
    baselines = {}
    if baseline == "mean":
        _, places = twin.FORWARDS[name](model, made.fresh.main[0])
        for place in places:
            path, _, side = place.partition(":")
            rows = list(made.trusted.main)
            baselines[place] = gradient_twin.mean_baseline(model, rows, path, side or "output")
    for index, row in enumerate(made.fresh.main):
        target = gradient_twin.margin_of(int(model(input_ids=row[None]).logits[0, -1].argmax()))
        expected = twin.contributions(name, model, row, baselines, target)
        by_token = expected[tokens].sum(-1).flip(0)
        np.testing.assert_allclose(found["positions"][index, : len(row)], by_token, atol=1e-5)
        after = expected[BLOCKS[name].format(0)].sum(-1).flip(0)
        np.testing.assert_allclose(found["residual 0"][index, : len(row)], after, atol=1e-5)
        heads = [float(expected[f"{path}:input"][:, part].sum()) for path, part in head_places(name)]
        np.testing.assert_allclose(found["heads"][index], heads, atol=1e-5)
        mlps = [float(expected[f"{BLOCKS[name].format(layer)}.mlp"].sum()) for layer in range(LAYERS)]
        np.testing.assert_allclose(found["mlps"][index], mlps, atol=1e-5)


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
@pytest.mark.parametrize("name", ["mlp", "conv", "gpt2", "llama", "neox", "bert"])
def test_the_values_are_the_same_to_the_bit_and_the_gradients_are_not(name, engine):
    made = toy(name, 4, 4)
    opened = open_model(made.model, engine=engine)
    view = ruled(opened, rules(opened, made.trusted))
    batch = first_batch(opened, made.fresh)
    middle = {"mlp": "0", "conv": "0", "bert": "bert.encoder.layer.0"}.get(name) or BLOCKS[name].format(0)
    plain, under = (each.run(batch, read=[Place(middle)], target=ClassLogit(1)) for each in (opened, view))
    assert isinstance(under, Run) and torch.equal(plain.logits, under.logits)
    for place, value in plain.values.items():
        assert torch.equal(value, under.values[place])
    # Both activations of the conv toy are ReLU, whose rule is its gradient.
    same = torch.allclose(plain.grads[Place(middle)], under.grads[Place(middle)])
    assert same == (name == "conv")


def conserving(name):
    """A toy of which every bias is zero."""
    made = toy(name, 8, 5)
    model = copy.deepcopy(made.model)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("bias"):
                value.zero_()
    return made, model


@pytest.mark.parametrize("name", ["mlp", "gpt2", "llama", "neox"])
def test_relevance_is_conserved_in_a_model_without_biases(name):
    """At every layer the relevance sums to the logit; the plain gradient's does not, where not all is ReLU."""
    made, model = conserving(name)
    opened = open_model(model)
    options = {"units": "blocks" if name == "mlp" else "residual", "baseline": "zero", "target": ClassLogit(2), **PLAIN}
    relevance = RelevancePatching(**options).fit(opened, made.trusted)
    gradient = AttributionPatching(**options).fit(opened, made.trusted)
    logits = np.concatenate([opened.logits(batch)[:, 2] for batch in opened.batches(made.fresh)])
    for group in ["blocks"] if name == "mlp" else [f"residual {layer}" for layer in range(LAYERS)]:
        np.testing.assert_allclose(table(relevance, made.fresh, group).sum(1), logits, rtol=1e-4, atol=1e-5)
        assert np.abs(table(gradient, made.fresh, group).sum(1) - logits).max() > 1e-2


def test_in_a_relu_net_without_biases_relevance_is_the_gradients_and_conserved():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 4, bias=False), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(4, 3, bias=False))
        x = torch.randn(7, 6)
    inputs = Inputs.of(x)
    options = {"units": "positions", "baseline": "zero", "target": ClassLogit(0), **PLAIN}
    found = RelevancePatching(**options).fit(open_model(model), inputs).reduced(inputs)
    plain = AttributionPatching(**options).fit(open_model(model), inputs).reduced(inputs)
    np.testing.assert_allclose(found.values, plain.values, atol=1e-6)
    signed = [i for i, column in enumerate(found.columns) if " sum " in column.name]
    np.testing.assert_allclose(found.values[:, signed].sum(1), model(x)[:, 0].detach(), atol=1e-5)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_normaliser_counts_as_constant_also_where_an_entry_is_at_the_centre(kind):
    norm = nn.LayerNorm(5) if kind == "layer" else nn.RMSNorm(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        with torch.no_grad():
            for value in norm.parameters():
                value.normal_()
    # Of both rows some entries are zero and so is, for one, the mean.
    x = torch.tensor([[1.0, -1.0, 0.0, 2.0, -2.0], [0.0, 0.0, 3.0, 1.0, 1.0]])
    opened = open_model(nn.Sequential(norm, nn.Linear(5, 2)))
    found = rules(opened, Inputs.of(x))
    assert [rule.path for rule in found] == ["0"]
    run = ruled(opened, found).run(first_batch(opened, Inputs.of(x)), read=[Place("", "input")], target=ClassLogit(0))
    source = x.clone().requires_grad_(True)
    centred = source - source.mean(-1, keepdim=True) if kind == "layer" else source
    eps = norm.eps or torch.finfo(torch.float32).eps
    size = (centred.square().mean(-1, keepdim=True) + eps).sqrt().detach()
    out = centred / size * norm.weight + (norm.bias if kind == "layer" else 0)
    (expected,) = torch.autograd.grad((out @ opened.module[1].weight[0]).sum(), source)
    torch.testing.assert_close(run.grads[Place("", "input")], expected, atol=1e-6, rtol=1e-5)


def test_a_module_in_place_has_the_rule_and_one_called_twice_keeps_its_gradient():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, last, x = nn.Linear(4, 5), nn.Linear(5, 2), torch.randn(6, 4)
    inputs, options = Inputs.of(x), {"units": "positions", "baseline": "zero", **PLAIN}
    values = []
    for inplace in (False, True):
        model = nn.Sequential(first, nn.SiLU(inplace=inplace), last)
        values.append(RelevancePatching(**options).fit(open_model(model), inputs)(inputs).values)
    np.testing.assert_array_equal(values[0], values[1])
    gradient = AttributionPatching(**options).fit(open_model(model), inputs)(inputs).values
    assert np.abs(values[0] - gradient).max() > 1e-2
    act = nn.Tanh()
    twice = nn.Sequential(first, act, nn.Linear(5, 5), act, last)
    fitted = RelevancePatching(**options).fit(open_model(twice), inputs)
    assert fitted.rules == ()
    gradient = AttributionPatching(**options).fit(open_model(twice), inputs)
    np.testing.assert_array_equal(fitted(inputs).values, gradient(inputs).values)


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
def test_other_edits_may_stand_on_the_same_model(engine):
    """As in a repair: also at places where a rule is, the values are the edited ones."""
    made = toy("gpt2", 6, 4)
    opened = open_model(made.model, engine=engine)
    mlp = "transformer.h.1.mlp"
    places = [Place(f"{mlp}.act", "input"), Place("transformer.h.1.ln_1"), Place(mlp)]
    edited = replace(opened, standing=lambda batch: {place: lambda value: 2 * value + 1 for place in places})
    batch = first_batch(opened, made.fresh)
    assert torch.equal(ruled(edited, rules(opened, made.trusted)).logits(batch), edited.logits(batch))
    assert not torch.allclose(opened.logits(batch), edited.logits(batch))
    fitted = RelevancePatching().fit(opened, made.trusted)
    moved = replace(fitted, model=edited)
    assert np.abs(moved(made.fresh).values - fitted(made.fresh).values).max() > 1e-3


def test_rules_are_found_on_every_family():
    kinds = {"gpt2": "stacked", "llama": "pattern", "neox": "interleaved", "bert": "pattern"}
    for name, kind in kinds.items():
        made = toy(name, 4, 1)
        found = [rule.kind for rule in rules(open_model(made.model), made.trusted)]
        assert found.count(kind) == LAYERS * (2 if kind == "pattern" else 1)
        assert found.count("activation") == LAYERS + (name == "bert")  # and the pooler's
        assert found.count("product") == (LAYERS if name == "llama" else 0)
        assert found.count("norm") + found.count("centred norm") == 2 * LAYERS + 1


@pytest.mark.parametrize("seed", range(3))
def test_where_norms_are_steep_relevance_is_nearer_to_exact_patching_than_a_gradient(seed):
    """A random GPT-2 whose norms have a gain of 4: correlation over inputs and MLPs with the exact effects."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {"n_layer": 6, "n_head": 4, "n_embd": 32, "n_positions": 16, "vocab_size": 50}
        model = hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.mul_(5 if value.ndim > 1 else 4 if "ln_" in name else 1)
        rows = torch.randint(1, 50, (2, 24, 8))
    opened, inputs = open_model(model), Inputs.of({"input_ids": rows[0]})
    places = [Place(f"transformer.h.{layer}.mlp") for layer in range(6)]
    batch, other = first_batch(opened, inputs), first_batch(opened, Inputs.of({"input_ids": rows[1]}))
    donors, clean = opened.run(other, read=places).values, opened.logits(batch)
    target = bound(TopMargin(), clean)
    read = target.bind(clean)
    exact = [read(clean) - read(opened.logits(batch, {place: lambda _, p=place: donors[p]})) for place in places]
    near = []
    for view in (opened, ruled(opened, rules(opened, inputs))):
        run = view.run(batch, read=places, target=target)
        found = [((run.values[p] - donors[p]) * run.grads[p]).flatten(1).sum(1) for p in places]
        near.append(np.corrcoef(torch.cat(found), torch.cat(exact))[0, 1])
    gradient, relevance = near
    assert relevance > gradient + 0.03 and relevance > 0.6, near


def test_odd_options_are_named():
    for options in ({"baseline": "median"}, {"donors": 0}, {"components": 0}, {"target": Divergence()}):
        with pytest.raises(FitError):
            RelevancePatching(**options)
    made = toy("mlp", 4, 1)
    with pytest.raises(FitError, match="no trusted inputs"):
        RelevancePatching().fit(open_model(made.model), made.trusted[:0])
