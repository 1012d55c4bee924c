import copy

import numpy as np
import pytest
import torch

from causalmad import Detector, open_model
from causalmad.errors import CausalmadError, FitError
from causalmad.signatures.functional_coupling import FunctionalCoupling, _disturbed
from causalmad.testing.traces import failing, untouched
from tests.signatures.families import small
from tests.twins import functional_coupling as twin


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
@pytest.mark.parametrize("name", ["mlp", "conv", "gpt2", "llama", "neox"])
def test_couplings_equal_plain_loops(name, engine):
    toy, model = small(name, 10, 4)
    spec = FunctionalCoupling(draws=6, top=3)
    fitted = spec.fit(open_model(toy.model, batch_size=3, engine=engine), toy.trusted, seed=5)
    answers, losses = twin.traces(model, [*toy.trusted.main, *toy.fresh.main], 6, 0.05, 5)
    fresh = [twin.coupling(losses[i], answers[i], losses[:10], answers[:10], 3) for i in range(10, 14)]
    np.testing.assert_allclose(fitted(toy.fresh).values, fresh, atol=2e-4)
    own = [twin.coupling(losses[i], answers[i], losses[:10], answers[:10], 3, own=i) for i in range(10)]
    np.testing.assert_allclose(fitted(toy.trusted).values, own, atol=2e-4)


def disturb(module, seed=0):
    return _disturbed(module, 0.05, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["gpt2", "conv"])
def test_disturbed_parameters_have_the_noise_and_come_back_to_the_last_bit(name):
    toy, _ = small(name)
    before = {key: value.clone() for key, value in toy.model.state_dict().items()}
    storage = [value.data_ptr() for value in toy.model.parameters()]
    with untouched(toy.model, "afterwards"), disturb(toy.model):
        for key, value in toy.model.named_parameters():
            change, spread = value - before[key], before[key].std(correction=0)
            assert torch.equal(change, torch.zeros_like(change)) if spread == 0 else change.std() < 0.1 * spread
            assert spread == 0 or not torch.equal(value, before[key])
        for key, value in toy.model.named_buffers():
            assert torch.equal(value, before[key])
        if name == "gpt2":  # tied
            assert toy.model.lm_head.weight is toy.model.transformer.wte.weight
    assert storage == [value.data_ptr() for value in toy.model.parameters()]


def test_tensors_that_share_storage_get_the_same_noise():
    module = torch.nn.ModuleList([torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)])
    module[1].weight.data = module[0].weight.data
    with disturb(module):
        assert torch.equal(module[0].weight, module[1].weight)
    assert module[1].weight.data_ptr() == module[0].weight.data_ptr()


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
@pytest.mark.parametrize("after", [0, 1, 4])
def test_nothing_is_left_when_the_model_raises_under_noise(after, engine):
    toy, _ = small("gpt2")
    model = open_model(toy.model, engine=engine)
    with failing(toy.model, after), untouched(toy.model, "after the failure"), pytest.raises(CausalmadError):
        FunctionalCoupling(draws=5).fit(model, toy.trusted)


def test_an_autograd_graph_of_the_user_survives():
    toy, _ = small("mlp")
    toy.model.eval()
    loss = toy.model(toy.fresh.main).square().sum()
    expected = torch.autograd.grad(loss, toy.model[0].weight, retain_graph=True)[0]
    FunctionalCoupling(draws=3).fit(open_model(toy.model), toy.trusted)
    assert torch.equal(torch.autograd.grad(loss, toy.model[0].weight)[0], expected)


class Switch(torch.nn.Module):
    """One of two networks with parameters of their own, by the sign of the first number."""

    def __init__(self):
        super().__init__()
        self.one, self.two = (self.network() for _ in range(2))

    @staticmethod
    def network():
        return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))

    def forward(self, x):
        return torch.where(x[:, :1] > 0, self.one(x[:, 1:]), self.two(x[:, 1:]))


def test_inputs_that_other_parameters_answer_are_not_coupled():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Switch()
    draw = torch.randn(160, 5, generator=torch.Generator().manual_seed(1))
    normal, other = copy.deepcopy(draw), copy.deepcopy(draw)
    normal[:, 0], other[:, 0] = 1, -1
    opened = open_model(model)
    fitted = FunctionalCoupling().fit(opened, opened.inputs(normal[:100]))
    usual, unusual = fitted(normal[100:]).values, fitted(other[100:]).values
    assert usual[:, 0].min() > unusual[:, 0].max()  # the mean of the 20 largest correlations


def test_a_loss_that_no_parameter_moves_is_coupled_to_nothing():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    with torch.no_grad():
        model[2].bias.zero_()
    opened = open_model(model)
    fitted = FunctionalCoupling(draws=10).fit(opened, torch_rows(opened, 12))
    values = fitted(opened.inputs(-torch.ones(1, 3))).values[0]
    np.testing.assert_allclose(values, [0, 0, 0, 0, 0, 0, np.log(1e-12)], rtol=1e-6)


def torch_rows(opened, count):
    return opened.inputs(torch.rand(count, 3, generator=torch.Generator().manual_seed(0)))


def test_bad_options_and_too_few_inputs_are_named():
    toy, _ = small("mlp")
    for bad in ({"draws": 2}, {"noise": 0.0}, {"top": 0}, {"trusted": 1}):
        with pytest.raises(FitError, match="draws >= 3"):
            FunctionalCoupling(**bad)
    with pytest.raises(FitError, match="1 distinct trusted inputs"):
        FunctionalCoupling().fit(open_model(toy.model), toy.trusted[:1])


def test_it_runs_in_a_detector_and_on_a_classifier_of_texts():
    toy, _ = small("bert", 40, 6)
    fitted = Detector(FunctionalCoupling(draws=5)).fit(toy.model, toy.trusted)
    assert np.isfinite(fitted.score(toy.fresh)).all()
