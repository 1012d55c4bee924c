"""Attention laid open: it is transformers' own, and nothing of ours is left."""

from __future__ import annotations

import copy
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from causalmad import open_model
from causalmad.errors import ModelError, SiteError
from causalmad.models.attention import attending, attention_layers, scores
from causalmad.targets import TopMargin
from causalmad.testing.toys import toy

NAMES = ("gpt2", "neox", "llama", "mistral", "qwen2", "bert", "vit")
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def data(name: str, prompts: Any, images: Any) -> Any:
    return images if name == "vit" else prompts


def traces(model: Any) -> list[Any]:
    """All that laying open could leave behind."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    tables = (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS)
    configs = [dict(vars(part.config)) for part in model.modules() if hasattr(part, "config")]
    parts = [(name, sorted(vars(part)), list(part._forward_hooks)) for name, part in model.named_modules()]
    return [configs, parts, [sorted(table.valid_keys()) for table in tables]]


def every_place(layers: Any) -> list[Any]:
    return [place for x in layers for place in (x.queries, x.keys, x.mask, x.values, x.pattern)]


@pytest.mark.parametrize("name", NAMES)
def test_the_pattern_is_what_transformers_returns(name, model_of, prompts, images):
    model = copy.deepcopy(model_of(name))  # transformers leaves hooks of its own where attentions are asked for
    opened = open_model(model)
    (batch,) = opened.batches(opened.inputs(data(name, prompts, images)))
    plain = opened.logits(batch)
    before = traces(model)
    with attending(opened) as seen:
        found = seen.model.run(batch, read=every_place(seen.layers))
    assert traces(model) == before
    assert torch.allclose(found.logits, plain, **CLOSE)
    config = model.config._attn_implementation
    try:
        model.config._attn_implementation = "eager"
        args, kwargs = opened._call(batch, -1)
        with opened.quiet(), torch.no_grad():
            expected = model(*args, **kwargs, output_attentions=True).attentions
    finally:
        model.config._attn_implementation = config
    real = (
        torch.ones(expected[0].shape[0], expected[0].shape[2], dtype=torch.bool) if batch.mask is None else batch.mask
    )
    assert len(expected) == len(seen.layers)
    for layer, pattern in zip(seen.layers, expected, strict=True):
        mine = found.values[layer.pattern].transpose(1, 2)
        assert torch.allclose(mine[real], pattern.transpose(1, 2)[real], **CLOSE)
        again = torch.softmax(scores(*(found.values[x] for x in (layer.queries, layer.keys, layer.mask))), -1)
        assert torch.equal(again, found.values[layer.pattern])
        assert layer.causal == (name not in ("bert", "vit"))


@pytest.mark.parametrize("name", NAMES)
def test_engines_agree_on_values_and_gradients(name, model_of, prompts, images):
    import nnsight

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = nnsight.NNsight(build_again(name))
    runs = []
    for handle, engine in ((model_of(name), "hooks"), (model_of(name), "nnsight"), (own, "nnsight")):
        opened = open_model(handle, engine=engine)
        (batch,) = opened.batches(opened.inputs(data(name, prompts, images)))
        with attending(opened) as seen:
            runs.append(seen.model.run(batch, read=every_place(seen.layers), target=TopMargin()))
    for run in runs[1:]:
        assert all(torch.allclose(run.values[place], runs[0].values[place], **CLOSE) for place in runs[0].values)
        assert all(torch.allclose(run.grads[place], runs[0].grads[place], **CLOSE) for place in runs[0].grads)


def build_again(name: str) -> nn.Module:
    from tests.conftest import build

    return build(name)


def test_gradients_and_edits_are_the_models_own(prompts):
    """The logits' change under a small edit of a pattern is its gradient there."""
    opened = open_model(build_again("gpt2").double())
    (batch,) = opened.batches(opened.inputs(prompts))
    step = 1e-6
    with attending(opened) as seen:
        for layer in seen.layers:
            for place in (layer.queries, layer.keys, layer.values, layer.pattern):
                run = seen.model.run(batch, read=[place], target=lambda logits: logits[:, 3])
                push = torch.randn(run.values[place].shape, dtype=torch.float64)
                moved = seen.model.logits(batch, {place: lambda value, push=push: value + step * push})
                slope = (moved - run.logits)[:, 3] / step
                expected = (run.grads[place] * push).flatten(1).sum(1)
                assert torch.allclose(slope, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_padding_changes_nothing(name, model_of, prompts):
    rows = []
    for side in ("left", "right") if name != "bert" else ("right",):
        for size in (1, 4):
            opened = open_model(model_of(name), side=side, batch_size=size)
            found = {}
            with attending(opened) as seen:
                for batch in opened.batches(opened.inputs(prompts)):
                    values = seen.model.run(batch, read=[x.pattern for x in seen.layers], output=False).values
                    for i, row in enumerate(batch.rows):
                        real = batch.mask[i]
                        kept = [values[x.pattern][i][:, real][:, :, real] for x in seen.layers]
                        assert all(torch.allclose(each.sum(-1), torch.ones(()), **CLOSE) for each in kept)
                        found[int(row)] = kept
            rows.append(found)
    for other in rows[1:]:
        assert all(torch.allclose(a, b, **CLOSE) for i in range(4) for a, b in zip(rows[0][i], other[i], strict=True))


def test_a_users_own_wrapper_is_as_it_was_and_another_machine_is_refused(wrap, prompts):
    model = build_again("gpt2")
    handle = wrap(model)
    opened = open_model(handle, engine="nnsight")
    (batch,) = opened.batches(opened.inputs(prompts))
    places = [site.place for site in opened.sites("mlps")]
    plain = opened.run(batch, read=places)
    before = traces(model)
    with attending(opened) as seen:
        seen.model.run(batch, read=every_place(seen.layers), target=TopMargin())
    assert traces(model) == before
    again = opened.run(batch, read=places)
    assert torch.equal(again.logits, plain.logits)
    assert all(torch.equal(again.values[place], plain.values[place]) for place in places)
    with pytest.raises(SiteError, match="another machine"):
        attention_layers(open_model(handle, engine="nnsight", remote="local"))


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
def test_everything_is_restored_after_an_error(engine, model_of, prompts):
    model = model_of("gpt2")
    opened = open_model(model, engine=engine)
    (batch,) = opened.batches(opened.inputs(prompts))
    before = traces(model)

    def fail(value):
        raise RuntimeError("in the middle of a run")

    with pytest.raises(Exception, match="in the middle"), attending(opened) as seen:
        seen.model.run(batch, edits={seen.layers[1].pattern: fail})
    assert traces(model) == before
    with attending(opened) as seen:
        with attending(opened) as inner:
            inner.model.run(batch, read=[inner.layers[0].pattern])
        seen.model.run(batch, read=[seen.layers[0].pattern])
    assert traces(model) == before


def test_models_that_share_a_configuration_do_not_disturb_each_other(prompts):
    import transformers as hf

    first = build_again("gpt2").eval()
    second = hf.GPT2LMHeadModel(first.config).eval()
    assert second.config is first.config
    opened = [open_model(first), open_model(second)]
    (batch,) = opened[1].batches(opened[1].inputs(prompts))
    plain = opened[1].logits(batch)
    before = traces(first)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with attending(opened[0]):
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(30)
    assert torch.allclose(opened[1].logits(batch), plain, **CLOSE)
    with attending(opened[1]) as seen:
        leave.set()
        thread.join()
        assert torch.allclose(seen.model.run(batch, read=[seen.layers[0].pattern]).logits, plain, **CLOSE)
    assert traces(first) == before


def test_half_precision_attends_in_single_as_transformers_does(prompts):
    model = build_again("llama").to(torch.bfloat16)
    opened = open_model(model)
    (batch,) = opened.batches(opened.inputs(prompts))
    plain = opened.logits(batch)
    with attending(opened) as seen:
        run = seen.model.run(batch, read=[seen.layers[0].pattern])
    pattern = run.values[seen.layers[0].pattern]
    assert pattern.dtype == torch.float32 and torch.allclose(pattern.sum(-1), torch.ones(()), **CLOSE)
    assert torch.allclose(run.logits, plain, atol=0.05 * float(plain.abs().max()))


def test_what_has_no_such_attention_is_refused(model_of):
    for name in ("mlp", "conv"):
        with pytest.raises(SiteError, match="no attention"), attending(open_model(toy(name).model)):
            raise AssertionError
    with pytest.raises(SiteError, match="no attention"):
        attention_layers(open_model(model_of("gemma2")))  # caps its scores


def test_options_that_change_the_scores_are_refused_while_running(model_of):
    from causalmad.models.attention import _attention

    value = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ModelError, match="softcap"):
        _attention(nn.Identity(), value, value, value, None, scaling=1.0, softcap=30.0)
