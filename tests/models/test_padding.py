"""Logits are those of the plain module called with one input, whatever family it is of and whoever is beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from causalmad import Detector, open_model
from causalmad.errors import FitError, InputsError, ModelError
from causalmad.inputs import Inputs
from causalmad.models.padding import one_batch
from causalmad.signatures import OutputOnly, ResamplingProfile
from causalmad.testing.model_laws import law_logits_are_the_models_own, law_padding_changes_nothing, subject

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 34,
    "pad_token_id": 1,
}
HALVES: dict[str, Any] = {"vocab_size": 40, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "Esm": {"mask_token_id": 4},
    "Longformer": {"attention_window": 4},
    "Luke": {"entity_vocab_size": 10, "entity_emb_size": 8},
    "Xmod": {"default_language": "en_XX"},
    "Nystromformer": {"segment_means_seq_len": 32, "num_landmarks": 32},
}
# How they number positions: from the padding's number on, two further on, or not at all.
CLASSIFIERS = ["Roberta", "XLMRoberta", "XLMRobertaXL", "RobertaPreLayerNorm", "Camembert", "MPNet", "Esm", "IBert"]
CLASSIFIERS += ["Data2VecText", "Xmod", "Longformer", "Luke", "Mra", "Nystromformer", "Bert", "Electra", "Albert"]


def loud(module: nn.Module) -> nn.Module:
    """Weights so large that everything depends on everything."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if value.ndim > 1:
                value.normal_(std=0.3, generator=draw)
            if "position_embeddings" in name:
                value[1] = 0  # where padding is, these families keep it at that
    return module


def family(name: str, **options: Any) -> nn.Module:
    import transformers as hf

    kind = name.partition("For")[0]
    config = getattr(hf, f"{kind}Config")(**{**SIZES, **OPTIONS.get(kind, {}), **options})
    return loud(getattr(hf, name)(config))


def rows(*lengths: int) -> Inputs:
    draw = torch.Generator().manual_seed(0)
    return Inputs.of({"input_ids": [torch.randint(5, 40, (size,), generator=draw) for size in lengths]})


def logits(model: Any, inputs: Inputs) -> Tensor:
    """(n, classes) in the order of the inputs."""
    batches = list(model.batches(inputs))
    found = torch.cat([model.logits(batch) for batch in batches])
    return found[torch.cat([torch.as_tensor(batch.rows) for batch in batches]).argsort()]


def require_own(module: nn.Module, inputs: Inputs | None = None) -> None:
    """Both laws: the first of one input alone, the second of inputs beside others."""
    toy = subject(type(module).__name__, module, rows(9, 3, 6) if inputs is None else inputs)
    law_logits_are_the_models_own(toy)
    law_padding_changes_nothing(toy)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_encoders_number_their_positions_as_they_do_alone(kind: str) -> None:
    model = open_model(family(f"{kind}ForSequenceClassification"))
    inputs = rows(9, 3, 6)
    alone = torch.cat([model.module.eval()(input_ids=row[None]).logits for row in inputs.main]).detach()
    largest = float(alone.abs().max())
    found = torch.cat([logits(model, inputs[[row]]) for row in range(3)])
    torch.testing.assert_close(found, alone, atol=1e-6 * largest, rtol=0)
    torch.testing.assert_close(logits(model, inputs), alone, atol=1e-5 * largest, rtol=0)
    law_logits_are_the_models_own(subject(kind, model.module, inputs))


@pytest.mark.parametrize("name", ["RobertaForCausalLM", "CamembertForCausalLM", "OPTForCausalLM"])
def test_decoders_that_number_from_the_padding_on(name: str) -> None:
    options = {"ffn_dim": 24, "word_embed_proj_dim": 16} if name.startswith("OPT") else {"is_decoder": True}
    module = family(name, **options)
    assert open_model(module).side == "left"
    require_own(module)
    model, inputs = open_model(module), rows(4, 7, 5, 7, 6, 4, 5)
    profile = ResamplingProfile(donors=2).fit(model, inputs, seed=0)
    alone = torch.cat([torch.as_tensor(profile(inputs[[row]]).values) for row in range(len(inputs))])
    torch.testing.assert_close(torch.as_tensor(profile(inputs).values), alone, atol=1e-4, rtol=1e-4)


def test_positions_are_given_only_where_padding_moves_the_tokens(model_of: Callable[[str], nn.Module]) -> None:
    inputs = rows(4, 4, 6)
    given = {}
    for name, module in {"gpt2": model_of("gpt2"), "roberta": family("RobertaForCausalLM", is_decoder=True)}.items():
        for side in ("left", "right"):
            model = open_model(module, side=side)  # type: ignore[arg-type]
            batches = (next(model.batches(part)) for part in (inputs[:2], inputs))
            given[name, side] = ["position_ids" in batch.extra for batch in batches]
    assert given == {
        ("gpt2", "left"): [False, True],
        ("gpt2", "right"): [False, False],
        ("roberta", "left"): [False, False],
        ("roberta", "right"): [False, False],
    }


class Needy(nn.Module):
    """A network of one's own that cannot do without the number of every position."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(40, 6), nn.Embedding(40, 6), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        each = (self.words(input_ids) * self.places(position_ids)).tanh() * attention_mask[..., None]
        return self.head(each.sum(1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_that_a_model_cannot_do_without(side: Any) -> None:
    module = loud(Needy())
    model, inputs = open_model(module, side=side), rows(4, 4, 7)
    assert model.needs == {"input_ids", "attention_mask", "position_ids"}
    own = [module(row[None], torch.ones(1, len(row)), torch.arange(len(row))[None]) for row in inputs.main]
    torch.testing.assert_close(logits(model, inputs), torch.cat(own).detach())
    torch.testing.assert_close(logits(model, inputs[:2]), torch.cat(own[:2]).detach())


def test_the_law_sees_arguments_that_change_the_logits() -> None:
    class Counting(nn.Module):
        """Takes a mask for another number than ones."""

        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(40, 3)

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.words(input_ids).mean(1) * (1 if attention_mask is None else 2)

    with pytest.raises(Exception, match="logits are the model's own"):
        law_logits_are_the_models_own(subject("mine", Counting(), rows(3)))


def test_what_is_found_out_is_kept_with_the_model() -> None:
    module = family("RobertaForCausalLM", is_decoder=True)
    runs: list[int] = []
    module.register_forward_hook(lambda *_: runs.append(1))
    model = open_model(module)
    inputs = rows(3, 5)
    next(model.batches(inputs[:1]))
    assert runs == []  # nothing is padded
    next(model.batches(inputs))
    assert len(runs) == 3
    next(open_model(model).batches(inputs))
    assert len(runs) == 3


def small(name: str) -> nn.Module:
    import transformers as hf

    sizes = {key: value for key, value in SIZES.items() if key != "max_position_embeddings"}
    short = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 40, "intermediate_size": 24}
    made: dict[str, Callable[[], nn.Module]] = {
        "rwkv": lambda: hf.RwkvForCausalLM(hf.RwkvConfig(**short, context_length=32, attention_hidden_size=16)),
        "griffin": lambda: hf.RecurrentGemmaForCausalLM(
            hf.RecurrentGemmaConfig(**{**sizes, "num_hidden_layers": 3}, lru_width=16, attention_window_size=4)
        ),
        "xlnet": lambda: hf.XLNetForSequenceClassification(
            hf.XLNetConfig(d_model=16, n_layer=2, n_head=2, d_inner=24, vocab_size=40)
        ),
    }
    return loud(made[name]())


class Unmasked(nn.Module):
    """A mean over all columns, whatever the mask says."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(40, 6), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.words(input_ids).mean(1).tanh())


@pytest.mark.parametrize("name", ["rwkv", "griffin", "xlnet", "nystromformer", "own"])
def test_models_that_ignore_the_mask(name: str) -> None:
    module = (
        family("NystromformerForSequenceClassification")
        if name == "nystromformer"
        else loud(Unmasked())
        if name == "own"
        else small(name)
    )
    require_own(module)
    model = open_model(module)
    batches = list(model.batches(rows(4, 7, 4, 6)))
    if name == "xlnet":  # it reads the last column, which at the left is a token
        assert model.side == "left" and len(batches) == 1
        return
    assert [batch.rows.tolist() for batch in batches] == [[0, 2], [3], [1]]
    assert all(bool(batch.extra["attention_mask"].all()) for batch in batches)
    detector = Detector(OutputOnly()).fit(model, rows(*[3 + i % 5 for i in range(60)]))
    some = rows(4, 9)
    assert float(detector.score(some)[0]) == pytest.approx(float(detector.score(some[:1])[0]), rel=1e-5)


def test_what_needs_all_inputs_in_one_run_says_why_it_cannot_be() -> None:
    model = open_model(loud(Unmasked()))
    with pytest.raises(InputsError, match="2 lengths cannot share a run: Unmasked gives an input other logits beside"):
        one_batch(model, rows(3, 5))
    with pytest.raises(FitError, match="donors of 3 lengths cannot share a run: Unmasked gives"):
        ResamplingProfile(donors=2).fit(model, rows(3, 5, 6, 4, 7), seed=0)
    assert len(one_batch(model, rows(3, 3))) == 2


def test_rows_of_a_cache_are_computed_with_those_of_their_length(tmp_path: Path) -> None:
    detector = Detector(OutputOnly()).fit(open_model(loud(Unmasked())), rows(*[3 + i % 5 for i in range(60)]))
    some = rows(4, 9, 4, 5)
    kept = detector.score(some, cache=tmp_path)
    assert kept.tolist() == pytest.approx(detector.score(some).tolist(), rel=1e-5)


def test_an_error_on_the_way_is_the_models_own() -> None:
    class Short(Unmasked):
        """It cannot run on a single token."""

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            if input_ids.shape[1] < 2:
                raise ValueError("too short")
            return super().forward(input_ids, attention_mask)

    model = open_model(loud(Short()))
    with pytest.raises(ModelError, match="too short"):
        logits(model, rows(1))
    logits(model, rows(1, 4))  # as it is padded: nothing to compare with


@pytest.mark.parametrize("first", ["left", "right"])
def test_views_padded_at_either_side(first: Any, model_of: Callable[[str], nn.Module]) -> None:
    inputs = rows(4, 7, 4, 6)
    for name in ("gpt2", "bert"):
        module = family("RobertaForSequenceClassification") if name == "bert" else model_of(name)
        alone = logits(open_model(module, batch_size=1), inputs)
        view = open_model(module, side=first)
        for side in (first, "right" if first == "left" else "left", first):
            view = open_model(view, side=side)
            torch.testing.assert_close(logits(view, inputs), alone, atol=1e-4, rtol=1e-4)


def test_a_model_without_a_head_is_padded_as_ever() -> None:
    import transformers as hf

    model = open_model(hf.RobertaModel(hf.RobertaConfig(**SIZES)))
    batch = next(model.batches(rows(3, 5)))
    assert batch.main.shape == (2, 5)
    with pytest.raises(ModelError):
        model.logits(batch)
