"""Both engines give the same numbers, which are those of the plain model, however the rows are padded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from causalmad.errors import ModelError, SiteError
from causalmad.models import OpenModel, open_model
from causalmad.sites import Place
from causalmad.targets import Divergence, TopMargin
from tests.conftest import CAUSAL

Models = Callable[[str], nn.Module]
ENGINES = ("hooks", "nnsight")
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def opened(model: Any, engine: str, **options: Any) -> OpenModel:
    return open_model(model, engine=engine, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_engines_agree(name: str, side: str, model_of: Models, prompts: object) -> None:
    hooks, traces = (opened(model_of(name), engine, side=side) for engine in ENGINES)
    batch = next(hooks.batches(hooks.inputs(prompts)))
    places = list(dict.fromkeys(s.place for s in hooks.sites(["residual", "attentions", "heads", "mlps", "neurons"])))
    places += [Place(places[0].path, "input"), *(site.place for site in hooks.sites("embedding"))]
    # nnsight's order is its own business: any order may be asked for.
    one, two = (
        hooks.run(batch, read=places, target=TopMargin()),
        traces.run(batch, read=places[::-1], target=TopMargin()),
    )
    torch.testing.assert_close(one.logits, two.logits, **CLOSE)
    for place in places:
        torch.testing.assert_close(one.values[place], two.values[place], **CLOSE)
        torch.testing.assert_close(one.grads[place], two.grads[place], **CLOSE)
    edits = {place: (lambda value: value * 0.5) for place in places[::2]}
    changed = hooks.logits(batch, edits)
    torch.testing.assert_close(changed, traces.logits(batch, edits), **CLOSE)
    assert not torch.allclose(changed, one.logits, atol=1e-3)
    early = [engine.run(batch, read=places[:1], output=False) for engine in (hooks, traces)]
    assert early[0].logits is early[1].logits is None
    torch.testing.assert_close(early[0].values, early[1].values, **CLOSE)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.filterwarnings("ignore")
def test_no_gradient_through_an_operation_is_not_taken_for_no_effect(engine: str) -> None:
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    model = opened(torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8), engine)
    (batch,) = model.batches(model.inputs(torch.randn(3, 4)))
    first, last = (Place(path) for path in "12")
    assert model.run(batch, read=[last], target=TopMargin()).grads[last].abs().sum() > 0
    with pytest.raises(ModelError, match="1 operations between 1 sites and the output have no gradient"):
        model.run(batch, read=[first, last], target=TopMargin())


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_only_where_they_are_wanted(engine: str, model_of: Models, prompts: Any) -> None:
    model = opened(model_of("gpt2"), engine)
    batch = next(model.batches(model.inputs(prompts)))
    places = [site.place for site in model.sites(["residual", "heads"])]
    whole = model.run(batch, read=places, target=TopMargin())
    some = model.run(batch, read=places[:-1], sloped=places[-2:], target=TopMargin())
    assert set(some.values) == set(places) and set(some.grads) == set(places[-2:])
    torch.testing.assert_close(dict(some.values), dict(whole.values))
    torch.testing.assert_close(dict(some.grads), {place: whole.grads[place] for place in places[-2:]})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("name", "side"), [("bert", "right"), *((name, side) for name in CAUSAL for side in ("left", "right"))]
)
def test_padding_changes_no_row(name: str, side: str, engine: str, model_of: Models, prompts: list[Any]) -> None:
    module = model_of(name)
    model = opened(module, engine, side=side)
    batch = next(model.batches(model.inputs(prompts)))
    assert len(batch) == len(prompts) and batch.mask is not None and not bool(batch.mask.all())
    together = model.run(batch, read=[model.sites("residual")[1].place])
    (residual,) = together.values.values()
    modes = [part.training for part in module.modules()]
    for row, prompt in enumerate(prompts):
        module.eval()
        with torch.no_grad():
            plain = module(input_ids=prompt["input_ids"][None]).logits
        for part, mode in zip(module.modules(), modes):
            part.training = mode
        wanted = plain[:, -1] if plain.ndim == 3 else plain
        assert together.logits is not None
        torch.testing.assert_close(together.logits[row : row + 1], wanted, **CLOSE)
        alone = next(model.batches(model.inputs([prompt])))
        (value,) = model.run(alone, read=[model.sites("residual")[1].place]).values.values()
        torch.testing.assert_close(residual[row][batch.mask[row]], value[0], **CLOSE)


def test_classifiers_of_sequences_find_their_padding(prompts: list[Any]) -> None:
    """They look for the last token that is not the padding token, whatever the attention mask says."""
    import transformers as hf

    words = {"vocab_size": 50, "pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1}
    module = hf.GPT2ForSequenceClassification(
        hf.GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=16, **words)
    ).eval()
    model = open_model(module)
    together = model.logits(next(model.batches(model.inputs(prompts))))
    alone = torch.cat([module(prompt["input_ids"][None]).logits.detach() for prompt in prompts])
    torch.testing.assert_close(together, alone, **CLOSE)


def test_a_model_that_reads_its_first_token_is_not_padded_on_the_left(model_of: Models) -> None:
    with pytest.raises(ModelError, match="first token"):
        open_model(model_of("bert"), side="left")


@pytest.mark.parametrize("engine", ENGINES)
def test_images(engine: str, model_of: Models, images: dict[str, Tensor]) -> None:
    module = model_of("vit")
    model = opened(module, engine)
    batch = next(model.batches(model.inputs(images)))
    run = model.run(batch, read=[s.place for s in model.sites("embedding")], target=TopMargin())
    module.eval()
    torch.testing.assert_close(run.logits, module(**images).logits.detach(), **CLOSE)
    module.train()
    assert next(iter(run.grads.values())).shape == (4, 5, 32)


class TwoLayers(nn.Module):
    """A chain with an in-place activation, whose gradients can be written down by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x)))


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_equal_those_of_the_plain_formula_despite_in_place_operations(engine: str) -> None:
    torch.manual_seed(0)
    net, x = TwoLayers(), torch.randn(5, 4)
    model = opened(net, engine)
    batch = next(model.batches(model.inputs(x)))
    places = [Place("first", "input"), Place("first"), Place("act"), Place("second", "input"), Place("")]
    run = model.run(batch, read=places, target=TopMargin())

    start = x.clone().requires_grad_(True)
    before = start @ net.first.weight.detach().T + net.first.bias.detach()
    after = before.clamp(min=0)
    logits = after @ net.second.weight.detach().T + net.second.bias.detach()
    torch.testing.assert_close(run.values[Place("first")], before.detach())
    torch.testing.assert_close(run.values[Place("act")], after.detach())
    torch.testing.assert_close(run.values[Place("")], logits.detach())
    top = logits.argmax(-1)
    others = [[k for k in range(3) if k != int(t)] for t in top]
    scalar = sum(logits[i, top[i]] - logits[i, others[i]].logsumexp(-1) for i in range(5))
    wanted = torch.autograd.grad(scalar, [start, before, after, after, logits])
    for place, grad in zip(places, wanted):
        torch.testing.assert_close(run.grads[place], grad)
    assert all(value.grad is None for value in net.parameters())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_gradient_is_that_of_the_place_alone_where_others_read_the_same_tensor(
    engine: str, model_of: Models, prompts: object
) -> None:
    """The residual stream goes on beside a layer: neither an edit of the layer's input nor its slope reaches that."""
    model = opened(model_of("gpt2"), engine)
    batch = next(model.batches(model.inputs(prompts)))
    place = Place("transformer.h.1.ln_2", "input")

    def asked(logits: Tensor) -> Tensor:
        return logits[:, 0]

    slopes = [
        model.run(batch, read=[*earlier, place], target=asked).grads[place]
        for earlier in ([], [Place("transformer.wte")], [Place("transformer.h.0")])
    ]
    for other in slopes[1:]:
        torch.testing.assert_close(other, slopes[0], **CLOSE)
    step = 1e-3 * torch.randn(slopes[0].shape, generator=torch.Generator().manual_seed(0))
    above, below = (model.logits(batch, {place: lambda v, s=s: v + s * step}) for s in (1, -1))
    torch.testing.assert_close((slopes[0] * step).sum((1, 2)), (asked(above) - asked(below)) / 2, atol=2e-5, rtol=1e-2)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_without_any_effect_are_zero(engine: str) -> None:
    class Idle(TwoLayers):
        def forward(self, x: Tensor) -> Tensor:
            self.first(x)
            return self.second(x.new_ones(len(x), 6))

    model = opened(Idle(), engine)
    batch = next(model.batches(model.inputs(torch.randn(2, 4))))
    assert not model.run(batch, read=[Place("first")], target=TopMargin()).grads[Place("first")].any()


@pytest.mark.parametrize("engine", ENGINES)
def test_divergence_has_no_slope_when_clean(engine: str, model_of: Models, prompts: object) -> None:
    model = opened(model_of("gpt2"), engine)
    batch = next(model.batches(model.inputs(prompts)))
    place = model.sites("residual")[0].place
    slope = model.run(batch, read=[place], target=Divergence()).grads[place]
    assert slope.abs().max() < 1e-5 < model.run(batch, read=[place], target=TopMargin()).grads[place].abs().max()


class Tuples(nn.Module):
    """Tuples, names, shared parts and a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.shared, self.never, self.head = Pair(), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.list = nn.ModuleList([nn.Identity()])

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        name, left, right = self.pair(left=x, right=2 * x)
        if bool((x > 100).any()):
            left = self.never(left)
        return self.head(self.shared(self.shared(left)) + right), name


class Pair(nn.Module):
    def forward(self, *, left: Tensor, right: Tensor) -> tuple[str, Tensor, Tensor]:
        return "pair", left + 1, right - 1


@pytest.mark.parametrize("engine", ENGINES)
def test_elements_of_tuples_and_named_arguments(engine: str) -> None:
    net, x = Tuples(), torch.randn(3, 4)
    model = opened(net, engine)
    batch = next(model.batches(model.inputs(x)))
    places = [Place("pair", "input"), Place("pair", "input", "right"), Place("pair"), Place("pair", "output", 2)]
    run = model.run(batch, read=places)
    for place, wanted in zip(places, [x, 2 * x, x + 1, 2 * x - 1]):
        torch.testing.assert_close(run.values[place], wanted)
    edits = {
        Place("pair", "input", "right"): lambda value: value * 0,
        Place("pair", "output", 1): lambda value: value + 3,
    }
    run = model.run(batch, read=[Place("pair", "output", 2), Place("pair", "output", 1)], edits=edits)
    torch.testing.assert_close(run.values[Place("pair", "output", 2)], torch.full_like(x, -1))
    torch.testing.assert_close(run.values[Place("pair", "output", 1)], x + 4)
    with pytest.raises(SiteError, match="is a str, not a tensor") as raised:
        model.run(batch, read=[Place("pair", "output", 0)])
    assert raised.value.tries == ("pair:output[1]", "pair:output[2]")
    with pytest.raises(SiteError, match="does not exist"):
        model.run(batch, read=[Place("pair", "output", 7)])
    with pytest.raises(SiteError, match="does not exist"):
        model.run(batch, read=[Place("pair", "input", "middle")])


@pytest.mark.parametrize("engine", ENGINES)
def test_places_that_cannot_be_read(engine: str) -> None:
    model = opened(Tuples(), engine)
    batch = next(model.batches(model.inputs(torch.randn(3, 4))))
    with pytest.raises(SiteError, match="called more than once"):
        model.run(batch, read=[Place("shared")])
    for path in ("never", "list"):
        with pytest.raises(SiteError, match=f"1 sites were never reached, the first is {path}"):
            model.run(batch, read=[Place(path), Place("head")])
        with pytest.raises(SiteError, match="never reached"):
            model.run(batch, edits={Place(path): lambda value: value})
    with pytest.raises(SiteError, match="no module 'heed'") as raised:
        model.run(batch, read=[Place("heed")])
    assert raised.value.tries[0] == "head"
    with pytest.raises(SiteError, match=r"the edit at head gave \(3, 1\)"):
        model.run(batch, edits={Place("head"): lambda value: value[:, :1]})
    with pytest.raises(SiteError, match="gave NoneType"):
        model.run(batch, edits={Place("head"): lambda value: None})  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_branch_that_other_inputs_take(engine: str) -> None:
    model = opened(Tuples(), engine)
    small, large = (next(model.batches(model.inputs(x))) for x in (torch.randn(3, 4), torch.full((2, 4), 200.0)))
    with pytest.raises(SiteError, match="never reached"):
        model.run(small, read=[Place("never")])
    assert model.run(large, read=[Place("never"), Place("head")]).values[Place("never")].shape == (2, 4)
    with pytest.raises(SiteError, match="never reached"):
        model.run(small, read=[Place("never")])


@pytest.mark.parametrize("engine", ENGINES)
def test_integers_have_no_gradient(engine: str, model_of: Models, prompts: object) -> None:
    model = opened(model_of("gpt2"), engine)
    batch = next(model.batches(model.inputs(prompts)))
    place = Place("transformer.wte", "input")
    assert model.run(batch, read=[place]).values[place].equal(batch.main)
    with pytest.raises(SiteError, match="no gradient"):
        model.run(batch, read=[place], target=TopMargin())


@pytest.mark.parametrize("engine", ENGINES)
def test_reading_stops_after_the_last_read(engine: str) -> None:
    net = TwoLayers()
    seen: list[str] = []
    net.second.register_forward_hook(lambda *_: seen.append("second"))
    model = opened(net, engine)
    batch = next(model.batches(model.inputs(torch.randn(2, 4))))
    model.run(batch, read=[Place("first")], output=False)
    seen.clear()
    run = model.run(batch, read=[Place("first")], edits={Place("second"): torch.zeros_like}, output=False)
    assert run.logits is None and not seen


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda x: {"states": x}, "without logits"),
        (lambda x: "text", "returned str"),
        (lambda x: x[:1], "1 rows for 3 inputs"),
        (lambda x: x[:, None, None], "shape"),
        (lambda x: x * float("nan"), "NaN or infinite logits for 3 of the 3 inputs of a batch, the first for input"),
        (lambda x: x.index_fill(0, torch.tensor([2]), float("inf")), "for 1 of the 3 inputs of a batch"),
    ],
)
def test_outputs_that_are_no_logits(answer: Callable[[Tensor], Any], error: str, engine: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            return answer(self.inner(x))

    model = opened(Net(), engine)
    batch = next(model.batches(model.inputs(torch.randn(3, 4))))
    with pytest.raises(ModelError, match=error):
        model.logits(batch)
    assert model.run(batch, read=[Place("inner")], output=False).values[Place("inner")].shape == (3, 4)


def test_headless_models_say_so(prompts: object) -> None:
    import transformers as hf

    model = open_model(hf.GPT2Model(hf.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=50, n_positions=16)))
    with pytest.raises(ModelError, match="GPT2LMHeadModel"):
        model.logits(next(model.batches(model.inputs(prompts))))


def test_a_single_logit_counts_as_two_classes() -> None:
    net = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    model = open_model(net)
    x = torch.randn(3, 4)
    torch.testing.assert_close(
        model.logits(next(model.batches(model.inputs(x)))), torch.stack([torch.zeros(3), net(x).detach()], 1)
    )


def test_logits_at_other_positions(model_of: Models, prompts: list[Any]) -> None:
    module = model_of("gpt2")
    for side in ("left", "right"):
        model = opened(module, "hooks", side=side)
        inputs = model.inputs([{**prompt, "S": 1} for prompt in prompts])
        batch = next(model.batches(inputs))
        module.eval()
        wanted = torch.cat([module(prompt["input_ids"][None]).logits[:, 1].detach() for prompt in prompts])
        module.train()
        torch.testing.assert_close(model.logits(batch, position=1), wanted, **CLOSE)
        torch.testing.assert_close(model.logits(batch, position="S"), wanted, **CLOSE)


@pytest.mark.parametrize("engine", ENGINES)
def test_inference_mode_around_a_call(engine: str) -> None:
    net = TwoLayers()
    model = opened(net, engine)
    with torch.inference_mode():
        batch = next(model.batches(model.inputs(torch.randn(2, 4))))
        run = model.run(batch, read=[Place("first")], target=TopMargin())
    assert run.grads[Place("first")].abs().sum() > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_half_precision_is_read_in_single(engine: str) -> None:
    model = opened(TwoLayers().to(torch.bfloat16), engine)
    batch = next(model.batches(model.inputs(torch.randn(2, 4))))
    run = model.run(batch, read=[Place("first")], target=TopMargin())
    assert run.logits is not None and run.logits.dtype == torch.float32
    assert run.grads[Place("first")].dtype == torch.bfloat16
