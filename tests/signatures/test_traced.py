import copy

import numpy as np
import pytest
import torch
from nnsight import NNsight

import causalmad as cm
from causalmad import catalogue
from causalmad.errors import FitError, SpecError, StoreError
from causalmad.models import open_model
from causalmad.signatures import Activations
from causalmad.signatures.traced import Traced
from causalmad.testing import signature_laws as laws
from causalmad.testing.law import hold
from causalmad.testing.toys import toy
from causalmad.testing.traces import untouched

MLP, GPT2 = toy("mlp", trusted=40, fresh=9), toy("gpt2", trusted=16, fresh=7)


def hidden(model, tracer):
    return {"first": model[1].output, "second": model[4].output}


def norms(model, tracer):
    found = {}
    for i, block in enumerate(model.transformer.h):
        found[f"block {i}"] = block.output[:, -1].norm(dim=-1)
    return found | {"logits": model.output.logits[:, -1]}


def without_a_block(model, tracer):
    model[1].output[:, :8] = 0
    return model.output


def slope(model, tracer):
    middle = model[1].output
    return torch.autograd.grad(model.output.logsumexp(-1).sum(), middle)[0]


def test_what_is_read_are_the_activations():
    fitted = Traced(hidden).fit(open_model(MLP.model), MLP.trusted)
    wanted = Activations(("1", "4")).fit(open_model(MLP.model), MLP.trusted)
    found = fitted(MLP.fresh)
    np.testing.assert_array_equal(found.values, wanted(MLP.fresh).values)
    assert [c.name for c in fitted.columns[:2]] == ["first[0]", "first[1]"]
    assert {c.block for c in fitted.columns} == {"first", "second"} and found.ids == MLP.fresh.ids


def test_edits_and_gradients_are_nnsights_own():
    model = copy.deepcopy(MLP.model).eval()
    x = MLP.fresh.main
    with torch.no_grad():
        middle = model[1](model[0](x))
        middle[:, :8] = 0
        edited = model[2:](middle)
    found = Traced(without_a_block).fit(open_model(MLP.model), MLP.trusted)(MLP.fresh)
    np.testing.assert_allclose(found.values, edited.numpy(), rtol=1e-5, atol=1e-6)
    assert found.columns[0].name == "without_a_block[0]"

    middle = model[1](model[0](x))
    (wanted,) = torch.autograd.grad(model[2:](middle).logsumexp(-1).sum(), middle)
    found = Traced(slope, gradients=True).fit(open_model(MLP.model), MLP.trusted)(MLP.fresh)
    np.testing.assert_allclose(found.values, wanted.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("law", laws.SIGNATURE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize(("name", "spec"), [("mlp", Traced(hidden)), ("mlp", Traced(slope, gradients=True))])
def test_the_laws_hold(name, spec, law):
    hold(law, "traced", spec, toy(name, trusted=16, fresh=7))


def test_token_inputs_and_the_users_own_wrapper():
    plain = Traced(norms).fit(open_model(GPT2.model), GPT2.trusted)(GPT2.fresh)
    model = copy.deepcopy(GPT2.model)
    wrapper = NNsight(model)
    forwards = {name: part.__dict__["forward"] for name, part in model.named_modules()}
    own = Traced(norms).fit(open_model(wrapper, batch_size=2), GPT2.trusted)(GPT2.fresh)
    np.testing.assert_allclose(own.values, plain.values, rtol=1e-4, atol=1e-5)
    assert {name: part.__dict__["forward"] for name, part in model.named_modules()} == forwards
    assert [c.name for c in plain.columns[:3]] == ["block 0", "block 1", "logits[0]"]


def test_a_detector_like_any_other():
    fitted = cm.Detector(Traced(norms)).fit(GPT2.model, toy("gpt2", trusted=80).trusted)
    detection = fitted.detect(GPT2.fresh, alpha=0.2)
    assert detection.scores.shape == (7,) and ("block" in str(detection) or "logits" in str(detection))


def failing(model, tracer):
    raise KeyError("on purpose")


def backwards(model, tracer):
    second = model[4].output
    return second + model[1].output


def stopping(model, tracer):
    middle = model[1].output
    tracer.stop()
    return middle


@pytest.mark.parametrize("gradients", [False, True])
def test_errors_are_the_users_own_and_nothing_is_left(gradients):
    model = copy.deepcopy(MLP.model).train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[0].bias.requires_grad_(False)
    with untouched(model, "a failing trace"), pytest.raises(KeyError, match="on purpose"):
        Traced(failing, gradients).fit(open_model(model), MLP.trusted)
    with untouched(model, "a trace that calls backward()"):
        Traced(backward, gradients=True).fit(open_model(model), MLP.trusted)


def backward(model, tracer):
    middle = model[1].output
    model.output.sum().backward(retain_graph=True)
    return middle


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (backwards, "order in which the model computes"),
        (stopping, r"tracer\.stop"),
        (lambda model, tracer: 3, "gave a int as '<lambda>'"),
        (lambda model, tracer: {}, "no tensors"),
        (lambda model, tracer: {"a": model.output.sum()}, "a row for each of the 1 inputs"),
        (lambda model, tracer: {"a": model.output, "b": None}, "gave a NoneType as 'b'"),
    ],
)
def test_what_is_no_signature(function, message):
    with pytest.raises(SpecError, match=message):
        Traced(function).fit(open_model(MLP.model), MLP.trusted)


def test_shapes_must_not_depend_on_the_length():
    def everything(model, tracer):
        return model.transformer.h[0].output

    fitted = Traced(everything).fit(open_model(GPT2.model), GPT2.trusted)
    with pytest.raises(SpecError, match=r"columns for this batch.*\n.*the same tensors"):
        fitted(GPT2.fresh)


def test_specs_and_files(monkeypatch, tmp_path):
    with pytest.raises(SpecError, match="is not a function"):
        Traced("hidden")
    with pytest.raises(FitError, match="no trusted inputs"):
        Traced(hidden).fit(open_model(MLP.model), MLP.trusted[:0])
    entry = catalogue.Entry("signatures", "traced", "", Traced.__module__, "Traced")
    usual = catalogue.catalogue
    monkeypatch.setattr(catalogue, "catalogue", lambda kind: [entry] if kind == "signatures" else usual(kind))
    with pytest.raises(StoreError, match=r"function=<function hidden.*cannot be written down"):
        cm.Detector(Traced(hidden)).fit(MLP.model, MLP.trusted).save(tmp_path / "a")
