"""AtP*: equal to its plain twin, to exact patching where that is what it claims, and better than AtP when saturated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from causalmad import open_model
from causalmad.errors import FitError, SiteError
from causalmad.inputs import Inputs
from causalmad.models.attention import attending
from causalmad.signatures.atp_star import AtpStar
from causalmad.signatures.attention_effects import double_scores, key_changes, query_changes, through_weight
from causalmad.targets import Divergence, LogitDifference
from causalmad.testing.toys import VOCABULARY, toy
from tests.twins import atp_star as twin

TARGET = LogitDifference(1, 2)
LAYERS, HEADS = 3, 2
RAW = AtpStar(target=TARGET, normalise=False, log=False)


def difference(logits):
    return logits[1] - logits[2]


def gpt2(seed=0, layers=LAYERS, heads=HEADS, width=16, saturation=1.0):
    """A GPT-2 with seeded weights, whose queries and keys are scaled."""
    import transformers as hf

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"n_layer": layers, "n_head": heads, "n_embd": width, "n_positions": 16, "vocab_size": VOCABULARY}
        model = hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
        with torch.no_grad():
            for value in model.parameters():
                value.mul_(5 if value.ndim > 1 else 1)
            for block in model.transformer.h:
                block.attn.c_attn.weight[:, : 2 * width].mul_(saturation)
    return model.eval()


def prompts(count, length, seed):
    rows = torch.randint(1, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))
    return Inputs.of({"input_ids": rows})


def column(fitted, node, statistic):
    """Where the number of a node is."""
    kind, layer, head = node
    path = f"transformer.h.{layer}.mlp" if kind == "mlps" else f"transformer.h.{layer}.attn.{head}"
    return [column.name for column in fitted.columns].index(f"{kind} {statistic} {path}")


def means(model, rows, length):
    """Node -> (length, features) the mean over all tokens of all rows."""
    runs = [twin.run(model, row)[1] for row in rows]
    names = [name for name in runs[0] if name[0] != "pattern"]
    return {name: torch.cat([each[name] for each in runs]).mean(0).detach().expand(length, -1) for name in names}


@pytest.mark.parametrize("baseline", ["mean", "donors"])
def test_equals_the_twin(baseline):
    model = gpt2()
    draw = torch.Generator().manual_seed(3)
    rows = [torch.randint(1, VOCABULARY, (4 if baseline == "donors" else size,), generator=draw) for size in (3, 5, 4)]
    (ids,) = torch.randint(1, VOCABULARY, (1, 4), generator=draw)
    trusted = Inputs.of({"input_ids": rows})
    spec = AtpStar(target=TARGET, baseline=baseline, donors=1, normalise=False, log=False)
    fitted = spec.fit(open_model(model), trusted, seed=0)
    if baseline == "donors":  # the first is everybody's donor, the second its spare
        rows = [rows[trusted.digests.index(fitted.donor_digests[0])]]
        base = {name: value.detach() for name, value in twin.run(model, rows[0])[1].items()}
    else:
        base = means(model, rows, len(ids))
    effects = twin.effects(model, ids, base, difference)
    each = [twin.effects(model, ids, base, difference, dropped) for dropped in range(LAYERS)]
    drops = twin.graddrop(each)
    expected = {}
    for name, values in effects.items():
        expected[column(fitted, name, "sum")] = sum(values)
        expected[column(fitted, name, "size")] = sum(map(abs, values))
        expected[column(fitted, name, "drops")] = drops[name]
    names = [column.name for column in fitted.columns]
    for kind in ("queries", "keys", "values", "mlps"):
        for later in range(LAYERS):
            for layer in range(later):
                nodes = [name for name in effects if name[:2] == (kind, layer)]
                at = names.index(f"{kind} through {layer} {later}")
                expected[at] = sum(sum(effects[name]) - sum(each[later][name]) for name in nodes)
    assert sorted(expected) == list(range(len(names)))
    found = fitted(Inputs.of({"input_ids": [ids]})).values[0]
    assert np.allclose(found, [expected[i] for i in range(len(names))], rtol=1e-4, atol=1e-5)


def test_the_twin_is_the_model():
    model = gpt2()
    ids = prompts(1, 5, 0).fields["input_ids"][0]
    assert torch.allclose(twin.run(model, ids)[0], model(ids[None]).logits[0, -1], atol=1e-5)


def test_one_query_or_key_changes_the_pattern_as_computed():
    draw = torch.Generator().manual_seed(0)
    queries, base = (3 * torch.randn(1, 5, 2, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    keys, other = (3 * torch.randn(1, 5, 1, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    mask = torch.full((5, 5), torch.finfo(torch.float32).min).triu(1)[None, None]
    slope = torch.randn(1, 2, 5, 5, generator=draw, dtype=torch.float64)
    clean = torch.softmax(double_scores(queries, keys, mask), -1)
    changes = query_changes(queries, keys, mask, [base])
    weights = key_changes(queries, keys, mask, [other])
    effects = through_weight(double_scores(queries, keys, mask), weights, slope)
    for t in range(5):
        moved = queries.clone()
        moved[:, t] = base[:, t]
        new = torch.softmax(double_scores(moved, keys, mask), -1)
        assert torch.allclose(changes[:, :, t], (clean - new)[:, :, t], atol=1e-12)
        moved = keys.clone()
        moved[:, t] = other[:, t]
        new = torch.softmax(double_scores(queries, moved, mask), -1)
        assert torch.allclose(weights[..., t], (clean - new)[..., t], atol=1e-12)
        assert torch.allclose(effects[:, t], ((clean - new) * slope).sum((-1, -2)), atol=1e-10)


def test_a_key_of_all_the_weight_is_not_lost():
    # Its weight is 1 in any precision, and the gradient of the softmax is 0; moved far enough, it gives way.
    queries = torch.ones(1, 1, 1, 1).expand(1, 2, 1, 1)
    keys = torch.tensor([0.0, 900.0]).reshape(1, 2, 1, 1)
    mask = torch.zeros(1, 1, 2, 2)
    slope = torch.tensor([[1.0, 3.0], [1.0, 3.0]])[None, None]
    changes = key_changes(queries, keys, mask, [torch.zeros(1, 2, 1, 1)])
    effects = through_weight(double_scores(queries, keys, mask), changes, slope)
    assert effects[0, :, 0].tolist() == [0.0, pytest.approx(2 * 0.5 * (3 - 1))]
    alone = key_changes(queries[:, :1], keys[:, :1], mask[..., :1, :1], [keys[:, 1:]])
    assert alone.tolist() == [[[[0.0]]]]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("saturation", [4, 10])
def test_sees_through_saturated_attention(seed, saturation):
    """Exact patching of every query and key agrees with AtP* far better than with gradient times distance."""
    opened = open_model(gpt2(seed, layers=2, heads=4, width=32, saturation=saturation))
    fitted = RAW.fit(opened, prompts(40, 6, seed), seed=0)
    exact, plain, star = [], [], []
    with attending(opened) as seen:
        (batch,) = seen.model.batches(prompts(6, 6, seed + 100))
        found = fitted.effects(seen, batch, None)[0]
        read = [place for layer in seen.layers for place in (layer.queries, layer.keys, layer.pattern)]
        run = seen.model.run(batch, read=read, target=TARGET)
        weights = torch.cat([run.values[layer.pattern].amax(-1).flatten() for layer in seen.layers])
        assert weights.median() > (0.85 if saturation == 4 else 0.999)
        for i, layer in enumerate(seen.layers):
            for kind, place in (("queries", layer.queries), ("keys", layer.keys)):
                value = run.values[place]
                (base,) = fitted.baseline.each(place, value, batch, None)
                for t, head in np.ndindex(*value.shape[1:3]):

                    def edit(x, base=base, t=t, head=head):
                        x = x.clone()
                        x[:, t, head] = base[:, t, head]
                        return x

                    change = run.logits - seen.model.logits(batch, {place: edit})
                    exact.append(change[:, 1] - change[:, 2])
                    plain.append((run.grads[place] * (value - base)).sum(-1)[:, t, head])
                    star.append(found[kind, i][:, t, head])
    truth = torch.cat(exact).numpy()
    with_star, without = (np.corrcoef(torch.cat(part).numpy(), truth)[0, 1] for part in (star, plain))
    assert with_star > without + 0.1
    assert saturation > 4 or with_star > 0.6


def test_a_dropped_layer_sends_nothing_back():
    """With the second of two layers dropped, nothing reaches its own nodes, and the first's effects are direct."""
    model = gpt2(layers=2)
    opened = open_model(model)
    fitted = RAW.fit(opened, prompts(12, 5, 0))
    fresh = prompts(3, 5, 9)
    with attending(opened) as seen:
        (batch,) = seen.model.batches(fresh)
        clean, first, second = fitted.effects(seen, batch, None)
        assert all(not second[kind, 1].any() and not first[kind, 0].any() for kind in ("queries", "values", "mlps"))
        assert all(torch.equal(first[key], clean[key]) for key in clean if key[1] == 1)
        mlp = seen.model.sites("mlps")[0].place
        value = seen.model.run(batch, read=[mlp]).values[mlp]
    # By hand: what the first MLP's distance from its mean does to the logits through the last norm alone.
    (mean,) = fitted.baseline.each(mlp, value, batch, None)
    kept = {}
    handle = model.transformer.h[1].register_forward_hook(lambda *each: kept.update(stream=each[-1]))
    model(fresh.fields["input_ids"])
    handle.remove()
    stream = kept["stream"][:, -1].detach().requires_grad_(True)
    logits = model.lm_head(model.transformer.ln_f(stream))
    (slope,) = torch.autograd.grad((logits[:, 1] - logits[:, 2]).sum(), stream)
    assert torch.allclose(second["mlps", 0][:, -1, 0].float(), ((value - mean)[:, -1] * slope).sum(-1), atol=1e-5)
    assert not second["mlps", 0][:, :-1].any()


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox", "bert"])
def test_engines_and_padding_agree(name):
    made = toy(name, 12, 5)
    fitted = AtpStar().fit(open_model(made.model), made.trusted)
    whole = fitted(made.fresh).values
    again = AtpStar().fit(open_model(made.model, engine="nnsight"), made.trusted)(made.fresh).values
    assert np.allclose(whole, again, atol=1e-5)
    right = AtpStar().restore(open_model(made.model, side="right", batch_size=2), fitted.state())
    assert np.allclose(whole, right(made.fresh).values, atol=2e-5)
    alone = np.concatenate([fitted(made.fresh[[i]]).values for i in range(5)])
    assert np.allclose(whole, alone, atol=2e-5)


def test_heads_that_share_keys_are_moved_together():
    made = toy("llama", 12, 4)
    fitted = RAW.fit(open_model(made.model), made.trusted)
    names = [column.name for column in fitted.columns]
    assert sum(name.startswith("queries sum") for name in names) == 4
    assert sum(name.startswith("keys sum") for name in names) == 2


def test_shares_and_their_norm():
    made = toy("gpt2", 12, 4)
    opened = open_model(made.model)
    raw = RAW.fit(opened, made.trusted)(made.fresh).values
    spec = AtpStar(target=TARGET, log=False)
    shares = spec.fit(opened, made.trusted)
    sizes = [i for i, column in enumerate(shares.columns) if " size " in column.name]
    assert np.allclose(shares(made.fresh).values[:, sizes].sum(1), 1, atol=1e-5)
    assert np.allclose(shares(made.fresh).values[:, -1], np.log(raw[:, sizes].sum(1)), atol=1e-5)
    short = AtpStar(drop=False).fit(opened, made.trusted)
    assert {column.block.split()[1] for column in short.columns[:-1]} == {"sum", "size"}


def test_one_layer_has_nothing_to_drop():
    opened = open_model(gpt2(layers=1))
    columns = AtpStar().fit(opened, prompts(8, 4, 0)).columns
    assert columns and not any("drops" in column.name or "through" in column.name for column in columns)


def test_errors():
    for bad in ({"baseline": "zero"}, {"donors": 0}, {"target": Divergence()}):
        with pytest.raises(FitError):
            AtpStar(**bad)
    for name in ("mlp", "conv"):
        made = toy(name, 4, 1)
        with pytest.raises(SiteError, match="no attention"):
            AtpStar().fit(open_model(made.model), made.trusted)
    made = toy("gpt2", 4, 1)
    with pytest.raises(FitError, match="no trusted inputs"):
        AtpStar().fit(open_model(made.model), made.trusted[:0])


def test_a_slope_that_is_not_finite_is_no_silent_zero():
    model = open_model(gpt2())
    inputs = Inputs.of({"input_ids": torch.randint(1, 20, (12, 5), generator=torch.Generator().manual_seed(0))})
    with pytest.raises(FitError, match="NaN or infinite"):
        AtpStar(target=lambda logits: (logits[:, 0] - logits[:, 0].detach()).abs().sqrt()).fit(model, inputs)
