"""Toys: tiny seeded models with data, on which a law takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeAlias

import networkx as nx
import torch
from torch import Tensor, nn

from causalmad.errors import SpecError, nearest
from causalmad.hypotheses import OUTPUT, Hypothesis
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
        places: site texts at which the hypothesis claims its variables.
    """

    name: str
    model: nn.Module
    trusted: Inputs
    fresh: Inputs
    places: tuple[str, str]

    @property
    def hypothesis(self) -> Hypothesis:
        """A claim that can be tested on the toy, whether or not it is true."""
        graph = nx.DiGraph(name=self.name)
        graph.add_node("sign", at=self.places[0], value=_sign)
        graph.add_node("pair", at=self.places[1], value=_pair)
        nx.add_path(graph, ["sign", "pair", OUTPUT])
        return Hypothesis(graph)

    def ready(self, spec: Any) -> Any:
        """A signature with what it cannot do without: a hypothesis, a circuit where the sites have no roles, code.

        Signatures inside it get theirs too.
        """
        if isinstance(spec, tuple):
            return tuple(map(self.ready, spec))
        if not is_dataclass(spec) or isinstance(spec, type):
            return spec
        needs = {
            "hypothesis": self.hypothesis,
            "circuit": None if self.trusted.tokens else self.places,
            "function": _USERS_OWN.get(self.name, last_logits if self.trusted.tokens else outputs),
        }
        options = {field.name: getattr(spec, field.name) for field in fields(spec) if field.init}
        filled = {name: needs[name] if name in needs and value is None else value for name, value in options.items()}
        nested = {name: self.ready(value) for name, value in filled.items() if name in ("signature", "signatures")}
        return replace(spec, **{**filled, **nested})


def outputs(model: Any, tracer: Any) -> Any:
    """A user's own nnsight code: the output."""
    return model.output


def last_logits(model: Any, tracer: Any) -> Any:
    """A user's own nnsight code: the logits at the last token, which is the last position when padded left."""
    return model.output.logits[:, -1]


def class_logits(model: Any, tracer: Any) -> Any:
    """A user's own nnsight code: the logits of a classifier."""
    return model.output.logits


_USERS_OWN = {"bert": class_logits}


def toy(name: str, trusted: int = 48, fresh: int = 12) -> Toy:
    """A toy, the same in every process.

    Args:
        name: one of ``mlp`` (blocks on its inputs, one of which plays no part; dropout), ``linear`` (blocks), ``conv``
            (images; batch norm and dropout), ``gpt2``, ``llama``, ``neox`` or ``bert`` (two layers, two heads, width
            16, tokens of differing length; the last a classifier).
        trusted: number of trusted inputs.
        fresh: number of fresh inputs.

    Raises:
        SpecError: on another name.
    """
    if name not in _TOYS:
        raise SpecError(f"no toy is called {name!r}", tries=nearest(name, _TOYS))
    make, draw, places = _TOYS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().train()
    inputs = draw(trusted + fresh, torch.Generator().manual_seed(1))
    return Toy(name, model, inputs[:trusted], inputs[trusted:], places)


def _sign(row: Mapping[str, Any]) -> bool:
    """Whether the sum of an input's numbers is above the middle."""
    values = _numbers(row)
    return bool(values.sum() > (0 if values.is_floating_point() else VOCABULARY * len(values) // 2))


def _pair(row: Mapping[str, Any]) -> tuple[bool, bool]:
    """The sign, and that of the input's last number alone."""
    last = _numbers(row).flatten()[-1]
    return _sign(row), bool(last > 0 if last.is_floating_point() else last > VOCABULARY // 2)


def _numbers(row: Mapping[str, Any]) -> Tensor:
    return torch.as_tensor(row["input_ids"] if "input_ids" in row else row["input"])


def _mlp() -> nn.Module:
    first = nn.Linear(12, 16)
    model = nn.Sequential(first, nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(2 if value.ndim > 1 else 1)
        first.weight[:, 9:] = 0  # the block "idle" plays no part
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


def _bert() -> nn.Module:
    import transformers as hf

    sizes: dict[str, Any] = {key: value for key, value in _SIZES.items() if not key.endswith("token_id")}
    sizes |= {"num_labels": 3, "pad_token_id": 0}
    return _louder(hf.BertForSequenceClassification(hf.BertConfig(**sizes)))


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


_Parts: TypeAlias = tuple[Callable[[], nn.Module], Callable[[int, torch.Generator], Inputs], tuple[str, str]]
_TOYS: dict[str, _Parts] = {
    "mlp": (_mlp, _vectors, ("1", "4")),
    "linear": (_linear, _vectors, ("0", "1")),
    "conv": (_conv, _images, ("2", "5")),
    "gpt2": (_gpt2, _tokens, ("transformer.h.0@-1", "transformer.h.1.mlp@-1")),
    "llama": (_llama, _tokens, ("model.layers.0@-1", "model.layers.1.mlp@-1")),
    "neox": (_neox, _tokens, ("gpt_neox.layers.0@-1", "gpt_neox.layers.1.mlp@-1")),
    "bert": (_bert, _tokens, ("bert.encoder.layer.0@0", "bert.encoder.layer.1@0")),
}
