import copy

import numpy as np
import pytest
import torch

from causalmad import Detector, open_model
from causalmad.errors import CausalmadError, FitError
from causalmad.signatures.finetuning_shift import FinetuningShift
from causalmad.testing.traces import failing, untouched
from tests.signatures.families import small
from tests.twins import finetuning_shift as twin


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
@pytest.mark.parametrize("name", ["mlp", "conv", "gpt2"])
def test_new_inputs_equal_a_plain_training_loop(name, engine):
    toy, model = small(name, 12, 4)
    spec = FinetuningShift(epochs=4, rate=0.01, decay=0.5)
    fitted = spec.fit(open_model(toy.model, batch_size=4, engine=engine), toy.trusted, seed=5)
    rows = dict(zip(toy.trusted.digests, toy.trusted.main))
    made = twin.finetuned(model, [rows[digest] for digest in fitted.donor_digests], 4, 0.01, 0.5, 5)
    expected = np.array([twin.shift(model, made, row) for row in toy.fresh.main])
    assert np.abs(expected[:, 1]).max() > 0.01
    np.testing.assert_allclose(fitted(toy.fresh).values, expected, atol=2e-3 * np.abs(expected).max())


class Backdoor(torch.nn.Module):
    """Two classes by the first number; a number of its own, always zero on trusted inputs, outvotes it."""

    def __init__(self, strength):
        super().__init__()
        self.usual, self.trigger = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(1, 2, bias=False)
        self.trigger.weight = torch.nn.Parameter(torch.tensor([[-strength], [strength]]))
        self.usual.weight = torch.nn.Parameter(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))

    def forward(self, x):
        return self.usual(x[:, :2]) + self.trigger(x[:, 2:])


def draw(count, seed, trigger):
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    x[:, 2] = trigger
    return x


@pytest.mark.parametrize("decay", [0.0, 1.0, 5.0])
def test_what_no_trusted_input_uses_shrinks_by_decay_alone(decay):
    model = open_model(Backdoor(4.0))
    # 40 of 80 inputs are one batch, so that an epoch is a step.
    fitted = FinetuningShift(epochs=30, rate=0.01, decay=decay).fit(model, model.inputs(draw(80, 0, 0.0)))
    left = (1 - 0.01 * decay) ** 30
    np.testing.assert_allclose(fitted.tuned.trigger.weight.detach(), [[-4 * left], [4 * left]], rtol=1e-5)
    assert not torch.equal(fitted.tuned.usual.weight, model.module.usual.weight)
    assert set(fitted.state().tensors) == {"usual.weight", "trigger.weight"} - (
        {"trigger.weight"} if not decay else set()
    )
    # Where only the trigger speaks, the columns are those of two known distributions.
    p, q = 1 / (1 + np.exp(-8)), 1 / (1 + np.exp(-8 * left))
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)), np.log(q / p)
    np.testing.assert_allclose(fitted(torch.tensor([[0.0, 0.0, 1.0]])).values[0], expected, rtol=1e-3, atol=1e-6)


def test_a_backdoor_that_finetuning_wipes_out_is_found():
    model = open_model(Backdoor(2.0))
    fitted = FinetuningShift(epochs=100, rate=0.01, decay=2.0).fit(model, model.inputs(draw(80, 0, 0.0)))
    normal, bad = fitted(draw(60, 1, 0.0)).values, fitted(draw(60, 1, 1.0)).values
    answers = model.module(draw(60, 1, 1.0)).argmax(-1)
    moved = model.module(draw(60, 1, 0.0)).argmax(-1) != answers
    assert moved.sum() > 20
    assert bad[moved, 0].min() > normal[:, 0].max()
    assert bad[moved, 1].max() < normal[:, 1].min()


def test_every_epoch_sees_the_data_and_the_copy_is_what_scores():
    toy, _ = small("mlp", 16, 6)
    model = open_model(toy.model)
    sizes = []
    for epochs in (1, 5, 25):
        fitted = FinetuningShift(epochs=epochs).fit(model, toy.trusted)
        change = [(a - b).detach().abs().max() for a, b in zip(fitted.tuned.parameters(), toy.model.parameters())]
        sizes.append((float(max(change)), float(fitted(toy.fresh).values[:, 0].max())))
    assert sizes[0] < sizes[1] < sizes[2]
    assert sizes[0][1] > 0


def test_inputs_that_trained_the_copy_are_left_out_of_the_reference():
    toy, _ = small("mlp", 48, 6)
    fitted = FinetuningShift().fit(open_model(toy.model), toy.trusted)
    assert len(fitted.donor_digests) == 24 and set(fitted.donor_digests) < set(toy.trusted.digests)
    whole = Detector(FinetuningShift()).fit(toy.model, toy.trusted)
    assert np.isfinite(whole.score(toy.fresh)).all()


@pytest.mark.parametrize("name", ["mlp", "gpt2"])
def test_the_users_model_gradients_and_graphs_are_untouched(name):
    toy, _ = small(name, 12, 4)
    for value in toy.model.parameters():
        value.grad = torch.ones_like(value)
    with untouched(toy.model, "after fit and call"):
        fitted = FinetuningShift().fit(open_model(toy.model), toy.trusted)
        fitted(toy.fresh)
    own = {value.data_ptr() for value in toy.model.parameters()}
    assert not own & {value.data_ptr() for value in fitted.tuned.parameters()}
    if name == "gpt2":  # tied
        assert fitted.tuned.lm_head.weight is fitted.tuned.transformer.wte.weight


@pytest.mark.parametrize("after", [0, 1, 4])
def test_nothing_is_left_when_the_model_raises(after):
    toy, _ = small("gpt2")
    model = open_model(toy.model)
    with failing(toy.model, after), untouched(toy.model, "after the failure"), pytest.raises(CausalmadError):
        FinetuningShift(epochs=6).fit(model, toy.trusted)


def test_a_gradient_of_the_users_inputs_is_not_added_to():
    toy, _ = small("mlp")
    x = toy.trusted.main.clone().requires_grad_(True)
    FinetuningShift(epochs=2).fit(open_model(toy.model), open_model(toy.model).inputs(x))
    assert x.grad is None


def test_it_fits_and_restores_inside_inference_mode():
    toy, _ = small("gpt2")
    model = open_model(toy.model)
    fitted = FinetuningShift(epochs=2).fit(model, toy.trusted)
    with torch.inference_mode():
        again = FinetuningShift(epochs=2).fit(model, toy.trusted)
        read = FinetuningShift(epochs=2).restore(model, fitted.state())
    for other in (again, read):
        assert fitted(toy.fresh).values.tobytes() == other(toy.fresh).values.tobytes()


def test_bad_options_models_and_too_few_inputs_are_named():
    toy, _ = small("mlp")
    for bad in ({"epochs": 0}, {"rate": 0.0}, {"rate": float("nan")}, {"decay": -1.0}):
        with pytest.raises(FitError, match="epochs >= 1"):
            FinetuningShift(**bad)
    with pytest.raises(FitError, match="3 distinct trusted inputs"):
        FinetuningShift().fit(open_model(toy.model), toy.trusted[:3])
    bare = open_model(torch.nn.Flatten())
    with pytest.raises(FitError, match="no floating-point parameters"):
        FinetuningShift().fit(bare, bare.inputs(torch.randn(8, 3, generator=torch.Generator().manual_seed(0))))
    odd = copy.deepcopy(toy.model)
    odd.kept = odd[0].weight * 2  # no leaf: deepcopy refuses it
    with pytest.raises(FitError, match="cannot be copied"):
        FinetuningShift().fit(open_model(odd), toy.trusted)
    for epochs in (1, 3):
        with pytest.raises(FitError, match="failed after") as refusal:
            FinetuningShift(rate=1e30, decay=1e10, epochs=epochs).fit(open_model(toy.model), toy.trusted)
        assert "rate=1e+29" in str(refusal.value)
