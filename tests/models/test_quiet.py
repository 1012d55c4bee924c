"""What a model keeps besides its weights: put back after every run and at the end, whatever fails in between."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import causalmad as cm
import causalmad.models.quiet as quiet_module
from causalmad.errors import ModelError
from causalmad.models import open_model
from tests.models.test_no_trace import ENGINES, snapshot


def sequence(length: int, seed: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(5, 60, (length,), generator=torch.Generator().manual_seed(seed))}


@pytest.fixture
def dynamic() -> Any:
    """A model whose rotary embedding remembers the longest sequence that it has seen, in a buffer and an attribute."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=60,
        max_position_embeddings=8,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    for value in model.parameters():
        if value.ndim > 1:
            nn.init.normal_(value, std=0.3)
    return model


@pytest.mark.parametrize("engine", ENGINES)
def test_no_run_depends_on_how_long_the_inputs_before_it_were(dynamic: Any, engine: str) -> None:
    fresh, model = copy.deepcopy(dynamic), open_model(dynamic, engine=engine)  # type: ignore[arg-type]
    short, middle, long = ([sequence(length, 0)] for length in (6, 20, 30))

    def logits(rows: list[Any]) -> Tensor:
        return model.logits(next(model.batches(model.inputs(rows))))

    with torch.no_grad():
        wanted = [copy.deepcopy(fresh)(rows[0]["input_ids"][None]).logits[:, -1] for rows in (short, middle)]
    before = snapshot(dynamic)
    with model.quiet():
        for rows in (long, middle, short, middle):
            found = logits(rows)
    torch.testing.assert_close(found, wanted[1])
    for rows, right in zip((short, middle), wanted, strict=True):
        logits(long)
        torch.testing.assert_close(logits(rows), right)
        assert snapshot(dynamic) == before
    with torch.no_grad():
        torch.testing.assert_close(dynamic(middle[0]["input_ids"][None]).logits[:, -1], wanted[1])


def test_a_score_does_not_depend_on_what_was_scored_before(dynamic: Any) -> None:
    fitted = cm.Detector(cm.signatures.Activations()).fit(dynamic, [sequence(7, seed) for seed in range(40)])
    one, long = [sequence(20, 50)], [sequence(30, 51)]
    alone = fitted.score(one)
    fitted.score(long)
    np.testing.assert_array_equal(fitted.score(one), alone)


class Secretive(nn.Module):
    """Counts its runs where nobody looks: past the version of a buffer, and in attributes."""

    def __init__(self, big: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("hidden", torch.zeros(big))
        self.register_buffer("late", None)
        self.plain, self.table, self.length = torch.zeros(()), torch.zeros(1), 1

    def forward(self, x: Tensor) -> Tensor:
        self.hidden.data.add_(1)
        self.plain += 1
        self.late = torch.ones(2)
        if len(x) > self.length:
            self.length, self.table = len(x), torch.zeros(len(x))
        self.last = self.linear(x)
        return self.last + self.plain + self.hidden[:1]


@pytest.mark.parametrize("big", [1, 2**13])
def test_what_is_changed_in_secret_is_put_back(big: int) -> None:
    net = Secretive(big).eval()
    model = open_model(net)
    batch = next(model.batches(model.inputs(torch.randn(5, 4))))
    plain, before = net.plain, snapshot(net)
    first = model.logits(batch)
    assert snapshot(net) == before and net.plain is plain and not plain.any() and net.length == 1
    assert model.logits(batch).equal(first)
    if big == 1:  # comparing large tensors after every single run would cost too much
        with model.quiet():
            assert model.logits(batch).equal(first) and model.logits(batch).equal(first)


def pruned() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    prune.l1_unstructured(net[0], "weight", amount=0.3)
    return net


def normed() -> nn.Module:
    with pytest.warns(FutureWarning):
        layer = torch.nn.utils.weight_norm(nn.Linear(4, 8))
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("made", [pruned, normed])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_weight_that_hooks_compute_keeps_its_graph(made: Callable[[], Any], engine: str) -> None:
    net, data = made(), torch.randn(5, 4)
    net(data)
    weight, before = net[0].weight, snapshot(net)
    model = open_model(net, engine=engine)  # type: ignore[arg-type]
    model.logits(next(model.batches(model.inputs(data))))
    assert net[0].weight is weight and weight.grad_fn is not None and snapshot(net) == before


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def test_a_model_that_was_made_under_inference_mode() -> None:
    data = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        net = small()
    net.train()
    detector = cm.Detector(cm.signatures.Activations())
    wanted = detector.fit(small(), data).score(data[:3])
    for _ in range(2):
        np.testing.assert_allclose(detector.fit(net, data).score(data[:3]), wanted, rtol=1e-5)
        assert all(value.requires_grad for value in net.parameters()) and net.training and net[3].training


def test_gradients_of_a_model_that_was_made_under_inference_mode_are_a_named_error() -> None:
    data = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        net = small()
    detector = cm.Detector(cm.signatures.AttributionPatching())
    with pytest.raises(ModelError, match=r"copy.deepcopy\(model\)"):
        detector.fit(net, data)
    np.testing.assert_allclose(
        detector.fit(copy.deepcopy(net), data).score(data[:3]), detector.fit(small(), data).score(data[:3]), rtol=1e-5
    )


@pytest.mark.parametrize("broken", ["_set_generators", "_put_away", "_require_gradients"])
def test_one_failure_keeps_nothing_else_from_being_put_back(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = small()
    before = snapshot(net)

    def fail(*_: object) -> None:
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(quiet_module, broken, fail)
        with pytest.raises(RuntimeError, match="no"), quiet_module.quiet(net):
            net[1].running_mean.add_(1)
            torch.rand(1)
    kept = {"_require_gradients": "wanted", "_set_generators": "random"}.get(broken)
    after = snapshot(net)
    assert {name for name in before if before[name] != after[name]} == ({kept} if kept else set())
    for value in net.parameters():
        value.requires_grad_(True)
    with quiet_module.quiet(net):  # and the same thread's next runs are quiet again
        assert not net.training and not any(value.requires_grad for value in net.parameters())
    assert net.training


class Encoder(nn.Module):
    """torch's own encoder, which in evaluation runs whole layers in one kernel and drops what is padded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.embed, self.stack, self.out = nn.Embedding(60, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.out(self.stack(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)[:, 0])


@pytest.mark.parametrize("engine", ENGINES)
def test_inside_the_layers_of_torchs_own_encoder(engine: str) -> None:
    model = open_model(Encoder().eval(), engine=engine)  # type: ignore[arg-type]
    rows = [sequence(length, length) for length in (3, 7, 5)]
    sites = model.sites(["stack.layers.*@-1", "stack.layers.*.linear1@-1", "stack.layers.*.self_attn@-1"])
    places = [site.place for site in sites]
    fast = torch.backends.mha.get_fastpath_enabled()

    def read(part: list[Any]) -> tuple[Tensor, ...]:
        batch = next(model.batches(model.inputs(part)))
        run = model.run(batch, read=places)
        return run.logits, *(site.take(run.values[site.place], batch) for site in sites)

    together = read(rows)
    for number, row in enumerate(rows):
        for found, wanted in zip(read([row]), together, strict=True):
            torch.testing.assert_close(found[0], wanted[number], rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            wanted = model.module(row["input_ids"][None], torch.ones(1, len(row["input_ids"])))
        torch.testing.assert_close(together[0][number], wanted[0], rtol=1e-4, atol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled() == fast


@pytest.mark.parametrize("before", [True, False])
def test_the_fast_kernels_of_attention_are_back_when_the_last_model_is_done(before: bool) -> None:
    now = torch.backends.mha.get_fastpath_enabled
    was = now()
    try:
        torch.backends.mha.set_fastpath_enabled(before)
        with quiet_module.quiet(small()):
            assert now() == before  # no attention, no change
        first, second = quiet_module.quiet(Encoder()), quiet_module.quiet(Encoder())
        with first:
            second.__enter__()
            assert not now()
        assert not now()
        second.__exit__(None, None, None)
        assert now() == before
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


@pytest.mark.parametrize("signature", ["Activations", "ExactAblation"])
def test_default_sites_of_torchs_own_encoder(signature: str) -> None:
    detector = cm.Detector(getattr(cm.signatures, signature)())
    rows = [sequence(2 + seed % 6, seed) for seed in range(60)]
    fitted = detector.fit(Encoder(), rows)
    assert np.isfinite(fitted.score(rows[:3])).all()


def test_what_goes_with_a_buffer_that_is_written_to_is_put_back_with_it() -> None:
    """A table and the number of its rows that are filled, as caches of rotary embeddings have them."""

    class Filling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line, self.filled = nn.Linear(3, 2), 0
            self.register_buffer("table", torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > self.filled:
                self.table[self.filled : len(x)] = 1.0
                self.filled = len(x)
            return self.line(x) * self.table[: len(x), None]

    module = Filling()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    wanted, model = copy.deepcopy(module)(x).detach(), open_model(module)
    for _ in range(2):
        torch.testing.assert_close(model.logits(next(model.batches(model.inputs(x)))), wanted)
        assert module.filled == 0 and not module.table.any()
    torch.testing.assert_close(module(x), wanted)


def test_held_is_quiet_and_within_quiet_puts_nothing_back():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    with quiet_module.held(module):
        assert not module.training and not module[0].weight.requires_grad
        with quiet_module.held(module):
            module[0].noted = torch.ones(1)
        assert module[0].noted is not None
    assert module.training and module[0].weight.requires_grad and not hasattr(module[0], "noted")
