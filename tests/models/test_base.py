"""What an opened model hands to the module, and what it hands back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import causalmad as cm
from causalmad.errors import SiteError
from causalmad.models import open_model
from causalmad.sites import Place
from causalmad.targets import TopMargin

ENGINES = ("hooks", "nnsight")


class Careful(nn.Module):
    """A small network that leaves its input as it is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.hidden, self.second = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)
        self.register_buffer("out", torch.zeros(1024, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.hidden(self.first((x - 0.5) * 3)))


class Careless(Careful):
    """The same network, which writes into its input."""

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5).mul_(3)
        return self.second(self.hidden(self.first(x)))


class Lender(Careful):
    """The same network, which hands out views of a buffer and of an attribute of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = Hidden()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(self.first((x - 0.5) * 3))
        if torch.is_grad_enabled():
            return self.second(hidden)
        return self.out[: len(x)].copy_(self.second(hidden))


class Hidden(nn.Module):
    """An activation that is computed into an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch = torch.zeros(1024, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) if torch.is_grad_enabled() else self.scratch[: len(x)].copy_(torch.relu(x))


@pytest.fixture
def data() -> Tensor:
    return torch.randn(120, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_that_writes_into_its_input_is_given_the_same_input_every_time(engine: str, data: Tensor) -> None:
    careful, careless = open_model(Careful()), open_model(Careless(), engine=engine)  # type: ignore[arg-type]
    batch = next(careful.batches(careful.inputs(data[:5])))
    place, whole = Place("first"), Place("", "input")
    for _ in range(2):
        for target in (None, TopMargin()):
            wanted = careful.run(batch, read=[place], target=target)
            # What is read at the input is overwritten later, so that the run is done a second time.
            found = careless.run(batch, read=[whole, place], target=target, sloped=[place])
            assert batch.main.equal(data[:5]) and found.values[whole].equal(data[:5])
            torch.testing.assert_close(found.logits, wanted.logits)
            torch.testing.assert_close(found.values[place], wanted.values[place])
            if target is not None:
                torch.testing.assert_close(found.grads[place], wanted.grads[place])


@pytest.mark.parametrize("signature", ["ResamplingProfile", "ExactAblation", "DonorMoments"])
def test_p_values_of_a_model_that_writes_into_its_input(signature: str, data: Tensor) -> None:
    detector = cm.Detector(getattr(cm.signatures, signature)())
    wanted, found = (detector.fit(net, data).detect(data[:40] + 0.1) for net in (Careful(), Careless()))
    torch.testing.assert_close(torch.tensor(found.p_values), torch.tensor(wanted.p_values))


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_run_gave_stays_what_it_was(engine: str, data: Tensor) -> None:
    net = Lender()
    model = open_model(net, engine=engine)  # type: ignore[arg-type]
    one, two = (next(model.batches(model.inputs(part))) for part in (data[:5], data[5:10]))
    hidden = Place("hidden")
    with torch.no_grad():
        wanted = Careful()(data[:5])
        values = torch.relu(net.first((data[:5] - 0.5) * 3))
    first = model.run(one, read=[hidden])
    with model.quiet():
        second = model.run(one, read=[hidden])
        model.run(two)
    for run in (first, second):
        torch.testing.assert_close(run.logits, wanted)
        torch.testing.assert_close(run.values[hidden], values)
    assert not net.out.any() and not net.hidden.scratch.any()


@pytest.mark.parametrize("signature", ["MutualInterchange", "DonorMoments"])
def test_scores_of_a_model_that_returns_a_buffer(signature: str, data: Tensor) -> None:
    detector = cm.Detector(getattr(cm.signatures, signature)())
    wanted, found = (detector.fit(net, data).score(data[:9] + 0.1) for net in (Careful(), Lender()))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


class Frugal(Careful):
    """The same network, which computes its first layer in inference mode, and writes into what comes out."""

    @torch.inference_mode()
    def encoded(self, x: Tensor) -> Tensor:
        return self.first((x - 0.5) * 3).mul_(2).div_(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.hidden(self.encoded(x)))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_that_switches_inference_mode_on_for_a_part(engine: str, data: Tensor) -> None:
    careful, frugal = open_model(Careful()), open_model(Frugal(), engine=engine)  # type: ignore[arg-type]
    batch, place = next(careful.batches(careful.inputs(data[:5]))), Place("first")
    found, wanted = (model.run(batch, read=[place]) for model in (frugal, careful))
    torch.testing.assert_close(found.logits, wanted.logits)
    torch.testing.assert_close(found.values[place], wanted.values[place])
    assert frugal.logits(batch, {place: lambda value: value * 0}).equal(
        careful.logits(batch, {place: lambda value: value * 0})
    )
    with pytest.raises(SiteError, match="inference_mode"):
        frugal.run(batch, read=[place], target=TopMargin())


@pytest.mark.parametrize("signature", [cm.signatures.Activations("first"), cm.signatures.ExactAblation()])
def test_scores_of_a_model_that_switches_inference_mode_on_for_a_part(signature: Any, data: Tensor) -> None:
    detector = cm.Detector(signature)
    wanted, found = (detector.fit(net, data).score(data[:9] + 0.1) for net in (Careful(), Frugal()))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_inputs_that_were_written_to_are_other_inputs():
    model = open_model(Careful())
    values = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    inputs = model.inputs(values)
    before = model.inputs(inputs).digests
    values.neg_()
    assert not set(before) & set(model.inputs(inputs).digests)


class Unsized(nn.Linear):
    """A part that has no length yet."""

    def __len__(self) -> int:
        raise TypeError("no length yet")


def test_parts_are_found_whatever_they_say_of_their_length_and_through_attributes():
    module = nn.Sequential()
    module.first, module.last = Unsized(4, 4), nn.Linear(4, 3)
    module.first.inner = nn.Linear(4, 4)
    model = open_model(module)
    (batch,) = model.batches(model.inputs(torch.randn(5, 4)))
    assert model.run(batch, read=[Place("first")]).values[Place("first")].shape == (5, 4)
    traced = nn.Sequential(torch.jit.trace(nn.Sequential(nn.Linear(4, 4)), torch.zeros(1, 4)), nn.Linear(4, 3))
    model = open_model(traced)
    with pytest.raises(SiteError):
        model.run(next(model.batches(model.inputs(torch.randn(5, 4)))), read=[Place("0.0")])
