"""Nothing is left on a model: whatever the engine, and whatever goes wrong."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from causalmad.errors import ModelError
from causalmad.models import open_model
from causalmad.sites import Place
from causalmad.targets import TopMargin

ENGINES = ("hooks", "nnsight")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs")


class Restless(nn.Module):
    """A model that changes and draws all it can while it runs, partly in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.second = nn.Linear(6, 3)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("noise", torch.zeros(3))
        self.first.bias.requires_grad_(False)
        self.norm.eval()
        self.failure: BaseException | None = None
        self.train(True)
        self.drop.training = False

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.noise = torch.randn(3) * float(np.random.rand() * random.random())  # noqa: NPY002
        hidden = self.drop(self.norm(self.first(x)))
        if self.failure is not None:
            raise self.failure
        return self.second(hidden) + 0 * self.noise


def snapshot(module: nn.Module) -> dict[str, Any]:
    parts = dict(module.named_modules())
    return {
        "hooks": {f"{n}.{key}": dict(getattr(part, key)) for n, part in parts.items() for key in HOOKS},
        "training": {n: part.training for n, part in parts.items()},
        "wanted": {n: value.requires_grad for n, value in module.named_parameters()},
        "grads": {n: value.grad for n, value in module.named_parameters()},
        "buffers": {n: (id(value), value.tolist()) for n, value in module.named_buffers()},
        "weights": {n: value.tolist() for n, value in module.named_parameters()},
        "attributes": {n: {k: id(v) for k, v in part.__dict__.items()} for n, part in parts.items()},
        "order": list(parts),
        "random": (
            torch.get_rng_state().tolist(),
            random.getstate(),
            str(np.random.get_state()),  # noqa: NPY002
        ),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def uses(model: Any, batch: Any) -> list[Callable[[], object]]:
    places = [Place("first"), Place("norm"), Place("second", "input")]
    return [
        lambda: model.logits(batch),
        lambda: model.run(batch, read=places),
        lambda: model.run(batch, read=places[:1], output=False),
        lambda: model.run(batch, read=places, target=TopMargin()),
        lambda: model.logits(batch, {Place("norm"): lambda value: value * 0}),
    ]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("use", range(5))
def test_nothing_is_left(engine: str, use: int) -> None:
    net = Restless()
    model = open_model(net, engine=engine)  # type: ignore[arg-type]
    batch = next(model.batches(model.inputs(torch.randn(5, 4))))
    before = snapshot(net)
    uses(model, batch)[use]()
    assert snapshot(net) == before


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("where", ["edit", "forward", "target"])
def test_nothing_is_left_after_an_error(engine: str, failure: BaseException, where: str) -> None:
    def fail(_: Tensor) -> Tensor:
        raise failure

    net = Restless()
    net.failure = failure if where == "forward" else None
    model = open_model(net, engine=engine)  # type: ignore[arg-type]
    batch = next(model.batches(model.inputs(torch.randn(5, 4))))
    before = snapshot(net)
    for _ in range(2):  # the second time the nnsight engine knows the order
        # An error gets a name; what ends the program stays what it is.
        named = isinstance(failure, Exception)
        with pytest.raises(ModelError if named else type(failure)) as raised:
            if where == "target":
                model.run(batch, read=[Place("norm")], target=fail)
            else:
                edits = {Place("norm"): fail} if where == "edit" else {}
                model.run(batch, read=[Place("first"), Place("second")], edits=edits)
        assert (raised.value.__cause__ if named else raised.value) is failure
        assert snapshot(net) == before
    net.failure = None
    assert model.logits(batch).shape == (5, 3)


def test_the_wrapper_of_a_user_stays_as_it_is(model_of: Any, wrap: Any, prompts: object) -> None:
    module = model_of("llama")
    plain = snapshot(module)
    wrapper = wrap(module)
    wrapped = snapshot(module)
    try:
        for remote in (False, "local"):
            model = open_model(wrapper, engine="nnsight", remote=remote)  # type: ignore[arg-type]
            batch = next(model.batches(model.inputs(prompts)))
            places = [site.place for site in model.sites("residual")]
            model.run(batch, read=places, target=TopMargin(), edits={places[0]: lambda value: value + 1})
            assert snapshot(module) == wrapped
    finally:
        for part in module.modules():
            for name in ("forward", "__nnsight__"):
                part.__dict__.pop(name, None)
    assert snapshot(module)["attributes"].keys() == plain["attributes"].keys()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_plain_module_that_is_also_wrapped_keeps_its_wrapper(engine: str) -> None:
    import nnsight

    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    wrapper = nnsight.NNsight(net)
    model = open_model(net, engine=engine)  # type: ignore[arg-type]
    batch = next(model.batches(model.inputs(torch.randn(5, 4))))
    before = snapshot(net)
    seen = model.run(batch, read=[Place("1")]).values[Place("1")]
    assert snapshot(net) == before
    with wrapper.trace(batch.main):
        hidden = wrapper[1].output.save()
    torch.testing.assert_close(seen, hidden.detach())


@pytest.mark.parametrize("engine", ENGINES)
def test_hooks_of_others_stay_and_work(engine: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    handle = net[2].register_forward_hook(lambda part, args, result: result + 100)
    model = open_model(net, engine=engine)  # type: ignore[arg-type]
    batch = next(model.batches(model.inputs(torch.randn(5, 4))))
    before = snapshot(net)
    assert model.logits(batch).min() > 50
    assert snapshot(net) == before
    handle.remove()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_editing_a_value_to_itself_changes_no_bit(engine: str, name: str, model_of: Any, prompts: object) -> None:
    model = open_model(model_of(name), engine=engine)  # type: ignore[arg-type]
    batch = next(model.batches(model.inputs(prompts)))
    sites = model.sites(["residual@-1", "heads", "heads@0", "neurons@-1", "mlps", "embedding"])
    clean = model.logits(batch)
    for site in sites:
        edit = {site.place: lambda value, site=site: site.put(value, site.take(value, batch), batch)}
        assert model.logits(batch, edit).equal(clean), str(site)
    assert model.logits(batch, {site.place: lambda value: value for site in sites}).equal(clean)
    assert model.run(batch, read=[site.place for site in sites], target=TopMargin()).logits.equal(clean)  # type: ignore[union-attr]


@pytest.mark.parametrize("engine", ENGINES)
def test_two_threads_on_one_model(engine: str, model_of: Any, prompts: list[Any]) -> None:
    module = model_of("gpt2")
    model = open_model(module, engine=engine)  # type: ignore[arg-type]
    batches = [next(model.batches(model.inputs([prompt]))) for prompt in prompts]
    place = model.sites("residual")[0].place
    wanted = [model.run(batch, read=[place], target=TopMargin()).grads[place] for batch in batches]
    before, wrong, errors = snapshot(module), [], []

    def work(offset: int) -> None:
        try:
            again = open_model(module, engine=engine)  # type: ignore[arg-type]
            for step in range(12):
                at = (step + offset) % len(batches)
                grads = again.run(batches[at], read=[place], target=TopMargin()).grads
                if not grads[place].equal(wanted[at]):
                    wrong.append(at)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not errors
    assert snapshot(module) == before


def test_quiet_can_be_nested_and_keeps_modes_for_as_long_as_it_lasts() -> None:
    net = Restless()
    model = open_model(net)
    before = snapshot(net)
    with model.quiet():
        with model.quiet():
            assert not any(part.training for part in net.modules())
            torch.rand(1)
        assert not any(part.training for part in net.modules())
        assert not any(value.requires_grad for value in net.parameters())
        net.count.add_(1)
    assert snapshot(net) == before


def test_models_are_not_kept_alive() -> None:
    import gc
    import weakref

    for engine in ENGINES:
        net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        model = open_model(net, engine=engine)  # type: ignore[arg-type]
        model.run(next(model.batches(model.inputs(torch.randn(2, 4)))), read=[Place("1")], target=TopMargin())
        gone = weakref.ref(net)
        del net, model
        gc.collect()
        assert gone() is None
