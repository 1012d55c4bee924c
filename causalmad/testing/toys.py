"""Toys: tiny seeded models with data, on which a law takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from causalmad.errors import SpecError, nearest
from causalmad.inputs import Inputs

VOCABULARY = 20


@dataclass(frozen=True, eq=False)
class Toy:
    """A model and inputs of one distribution.

    Attributes:
        name: what :func:`toy` calls it.
        model: the model, in training mode, as users have them.
        trusted: inputs to fit on.
        fresh: other inputs, drawn in the same way.
    """

    name: str
    model: nn.Module
    trusted: Inputs
    fresh: Inputs


def toy(name: str, trusted: int = 48, fresh: int = 12) -> Toy:
    """A toy, the same in every process.

    Args:
        name: one of ``mlp`` (blocks on its inputs, one of which plays no part; dropout), ``linear`` (blocks), ``conv``
            (images; batch norm and dropout), ``gpt2``, ``llama`` or ``neox`` (two layers, two heads, width 16, tokens
            of differing length).
        trusted: number of trusted inputs.
        fresh: number of fresh inputs.

    Raises:
        SpecError: on another name.
    """
    if name not in _TOYS:
        raise SpecError(f"no toy is called {name!r}", tries=nearest(name, _TOYS))
    make, draw = _TOYS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().train()
    inputs = draw(trusted + fresh, torch.Generator().manual_seed(1))
    return Toy(name, model, inputs[:trusted], inputs[trusted:])


def _mlp() -> nn.Module:
    model = nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)
    )
    with torch.no_grad():
        for part in model:
            if isinstance(part, nn.Linear):
                part.weight.mul_(2)
        model[0].weight[:, 9:] = 0  # the block "idle" plays no part
    return model


def _linear() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 6), nn.Linear(6, 3))


def _conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


def _gpt2() -> nn.Module:
    import transformers as hf

    sizes: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": VOCABULARY}
    return _louder(hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)))


def _llama() -> nn.Module:
    import transformers as hf

    return _louder(hf.LlamaForCausalLM(hf.LlamaConfig(**_SIZES, num_key_value_heads=1)))


def _neox() -> nn.Module:
    import transformers as hf

    return _louder(hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_SIZES)))


_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def _louder(model: Any) -> nn.Module:
    """Initial weights are so small that almost nothing depends on anything."""
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(5 if value.ndim > 1 else 1)
    network: nn.Module = model
    return network


def _vectors(count: int, draw: torch.Generator) -> Inputs:
    blocks = {"left": (0, 4), "middle": (4, 9), "idle": (9, 12)}
    return Inputs.of(torch.randn(count, 12, generator=draw), blocks=blocks)


def _images(count: int, draw: torch.Generator) -> Inputs:
    return Inputs.of(torch.randn(count, 1, 8, 8, generator=draw))


def _tokens(count: int, draw: torch.Generator) -> Inputs:
    lengths = torch.randint(3, 9, (count,), generator=draw).tolist()
    rows: list[Tensor] = [torch.randint(1, VOCABULARY, (length,), generator=draw) for length in lengths]
    return Inputs.of({"input_ids": rows})


_TOYS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, torch.Generator], Inputs]]] = {
    "mlp": (_mlp, _vectors),
    "linear": (_linear, _vectors),
    "conv": (_conv, _images),
    "gpt2": (_gpt2, _tokens),
    "llama": (_llama, _tokens),
    "neox": (_neox, _tokens),
}
