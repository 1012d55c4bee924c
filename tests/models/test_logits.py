"""Which logits are read: those at a known token, or none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from causalmad import open_model
from causalmad.errors import InputsError, ModelError


def rows(*lengths: int, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 40, (size,), generator=draw) for size in lengths]


def loud(module: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in module.parameters():
            if value.ndim > 1:
                value.normal_(std=0.3, generator=draw)
    return module.eval()


def t5() -> nn.Module:
    import transformers as hf

    sizes: dict[str, Any] = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 2, "num_heads": 2, "vocab_size": 40}
    return loud(hf.T5ForConditionalGeneration(hf.T5Config(**sizes, decoder_start_token_id=0)))


def bart() -> nn.Module:
    import transformers as hf

    parts = {"layers": 2, "attention_heads": 2, "ffn_dim": 24}
    sizes: dict[str, Any] = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in parts.items()}
    sizes |= {"d_model": 16, "vocab_size": 40, "max_position_embeddings": 32}
    return loud(hf.BartForConditionalGeneration(hf.BartConfig(**sizes)))


@pytest.mark.parametrize("lengths", [(6, 6, 6), (2, 2, 2), (1, 1, 1), (8, 3, 7), (5, 5, 5), (5, 2, 4)])
@pytest.mark.parametrize(("make", "side"), [(t5, "left"), (t5, "right"), (bart, "left"), (bart, "right")])
def test_a_decoder_is_read_at_its_own_tokens(make: Any, lengths: tuple[int, ...], side: Any) -> None:
    module = make()
    model = open_model(module, side=side)
    pairs = list(zip(rows(3, 5, 4), rows(*lengths, seed=1), strict=True))
    data = [{"input_ids": one, "decoder_input_ids": two, "first": 0} for one, two in pairs]
    inputs = model.inputs(data)
    for position in (-1, "first"):
        found = torch.cat([model.logits(batch, position=position) for batch in model.batches(inputs)])
        order = torch.cat([torch.as_tensor(batch.rows) for batch in model.batches(inputs)])
        with torch.no_grad():
            own = [module(input_ids=a[None], decoder_input_ids=b[None]).logits[0] for a, b in pairs]
        wanted = torch.stack([each[-1 if position == -1 else 0] for each in own])
        torch.testing.assert_close(found[order.argsort()], wanted, atol=1e-5, rtol=1e-5)


def test_a_mask_of_the_decoder_that_comes_with_the_data() -> None:
    module = t5()
    model = open_model(module)
    given = torch.stack(rows(6, 6))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    data = {"input_ids": torch.stack(rows(4, 4)), "decoder_input_ids": given, "decoder_attention_mask": mask}
    (batch,) = model.batches(model.inputs(data))
    with torch.no_grad():
        own = module(input_ids=data["input_ids"][:1], decoder_input_ids=given[:1, :4]).logits[0, -1]
    torch.testing.assert_close(model.logits(batch)[0], own, atol=1e-5, rtol=1e-5)


class Decoder(nn.Module):
    """An own decoder that takes no mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(40, 6), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        return self.head(self.words(input_ids).mean(1, keepdim=True) + self.words(decoder_input_ids).cumsum(1))


def test_decoder_tokens_that_would_be_padded_unseen_are_refused() -> None:
    model = open_model(Decoder())

    def batches(*lengths: int) -> Any:
        pairs = zip(rows(3, 3), rows(*lengths, seed=1), strict=True)
        return model.batches(model.inputs([{"input_ids": one, "decoder_input_ids": two} for one, two in pairs]))

    (batch,) = batches(4, 4)
    own = model.module(batch.main, batch.fields["decoder_input_ids"])[:, -1]
    torch.testing.assert_close(model.logits(batch), own.detach())
    with pytest.raises(InputsError, match="decoder_attention_mask"):
        next(batches(4, 2))


class Shaped(nn.Module):
    """Logits of some shape for rows of tokens."""

    def __init__(self, extra: int, answers: int = 0) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(40, 6), nn.Linear(6, 6)
        self.extra, self.answers = extra, answers

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        each = self.head(self.words(input_ids).cumsum(1))
        if self.answers:
            return each[:, -1].unflatten(-1, (self.answers, -1))
        return torch.cat([each[:, :1].expand(-1, self.extra, -1), each], 1)


@pytest.mark.parametrize("module", [Shaped(4), Shaped(0, answers=3), Shaped(0, answers=2)])
def test_positions_that_nothing_is_known_of_are_refused(module: nn.Module) -> None:
    model = open_model(module)
    (batch,) = model.batches(model.inputs([{"input_ids": row} for row in rows(5, 5)]))
    with pytest.raises(ModelError, match="for inputs of 5 tokens") as caught:
        model.logits(batch)
    assert "wrap the model" in str(caught.value)


def test_one_position_and_all_of_them_are_read() -> None:
    for module in (Shaped(0), Shaped(0, answers=1)):
        model = open_model(module)
        (batch,) = model.batches(model.inputs([{"input_ids": row} for row in rows(5, 5)]))
        torch.testing.assert_close(model.logits(batch), module(batch.main)[:, -1].detach())


@pytest.mark.parametrize("value", [3e38, 1e300, 1e308])
def test_logits_whose_sum_overflows_are_finite_all_the_same(value):
    class Large(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 3), value, dtype=torch.float32 if value < 1e39 else torch.float64)

    model = open_model(Large())
    (batch,) = model.batches(model.inputs(torch.zeros(2, 4)))
    assert bool((model.logits(batch) == torch.tensor(value, dtype=model.logits(batch).dtype)).all())
