"""Attention laid open: the queries, keys, values and pattern of transformers' attention as places like any other."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from causalmad.errors import ModelError, SiteError
from causalmad.models.base import OpenModel
from causalmad.models.hooks import Hooks
from causalmad.models.nnsight import Traces
from causalmad.sites import Place

_NAME = "causalmad_attending"  # of the implementation while it is in use, and of the module inside each attention


@dataclass
class _Held:
    """A configuration, the implementation that it named before, and how many use it."""

    config: Any
    before: Any
    users: int = 0


# Configurations in use, by id: models may share one, in threads of their own, and the last to leave restores it.
_LOCK = threading.Lock()
_HELD: dict[int, _Held] = {}


class AttentionLayer(NamedTuple):
    """The attention of one layer, as places that can be read, differentiated and edited while it is laid open.

    Keys and values are those of ``groups`` of heads in a row that share them; often each head has its own.

    Attributes:
        path: the module that attends.
        causal: whether a token sees only those before it.
    """

    path: str
    causal: bool

    @property
    def queries(self) -> Place:
        """(batch, positions, heads, features), after rotation, times the scale: scores are their products with keys."""
        return Place(f"{self.path}.{_NAME}.pattern", "input", 0)

    @property
    def keys(self) -> Place:
        """(batch, positions, groups, features), after rotation."""
        return Place(f"{self.path}.{_NAME}.pattern", "input", 1)

    @property
    def mask(self) -> Place:
        """(batch, 1, positions, positions), added to the scores: 0, or a number below all scores."""
        return Place(f"{self.path}.{_NAME}.pattern", "input", 2)

    @property
    def pattern(self) -> Place:
        """(batch, heads, positions, positions) weights: a row for every query, over the keys."""
        return Place(f"{self.path}.{_NAME}.pattern")

    @property
    def values(self) -> Place:
        """(batch, positions, groups, features)."""
        return Place(f"{self.path}.{_NAME}", "input", 2)


class Attended(NamedTuple):
    """A model whose attention is laid open.

    Attributes:
        model: to be used in place of the model; good for as long as the attention is laid open.
        layers: its attention, layer by layer.
    """

    model: OpenModel
    layers: tuple[AttentionLayer, ...]


def attention_layers(model: OpenModel) -> tuple[AttentionLayer, ...]:
    """The attention of every layer.

    Raises:
        SiteError: for a model without attention that can be laid open: it has to be transformers' own, with weights
            that are the softmax of queries times keys and a mask, and to run here.
    """
    needed = "a transformers model (GPT-2, GPT-NeoX, Llama and relatives, BERT, ViT) that runs here"
    if getattr(model.engine, "remote", False):
        raise SiteError(f"the attention of {model.name} cannot be laid open on another machine", needed=needed)
    known = model.architecture
    found = []
    for layer in range(known.layers if known else 0):
        path = known.path(layer, known.attention) if known else ""
        inner = [f"{path}.{name}".removesuffix(".") for name in _attending(model.module.get_submodule(path))]
        found += [AttentionLayer(each, bool(model.module.get_submodule(each).is_causal)) for each in inner[:1]]
    if known is None or not found or len(found) < known.layers:
        raise SiteError(
            f"{model.name} has no attention that can be laid open",
            needed=needed,
            causes=[
                "a network without attention, or of no known family",
                "scores that are capped (Gemma 2), attention with sinks, or attention in the model's own code",
            ],
            tries=["signatures that do not read attention, such as activations or resampling-profile"],
        )
    return tuple(found)


@contextmanager
def attending(model: OpenModel) -> Iterator[Attended]:
    """The model with its attention laid open, behind its lock; afterwards everything is as it was.

    Meanwhile each attention module holds a module of ours, which the attention goes through, and the model's
    configurations name an implementation of attention that is known to transformers for as long as anybody uses it.

    Raises:
        SiteError: for a model without attention that can be laid open.
    """
    layers = attention_layers(model)
    parts = [model.module.get_submodule(layer.path) for layer in layers]
    # A user's own nnsight wrapper does not know the modules that are put in: the module is wrapped anew.
    engine = model.engine if isinstance(model.engine, Hooks) else Traces(model.module)
    with model.quiet(), _named(model.module):
        new = [part for part in parts if _NAME not in part._modules]  # none, where it is laid open already
        try:
            for part in new:
                part._modules[_NAME] = _Attend()
            yield Attended(replace(model, engine=engine), layers)
        finally:
            for part in new:
                part._modules.pop(_NAME, None)


class _Pattern(nn.Module):
    """From scaled queries, keys and the mask to the weights."""

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        found = scores(queries, keys, mask)
        return torch.softmax(found, -1, dtype=torch.promote_types(found.dtype, torch.float32))


class _Attend(nn.Module):
    """From scaled queries, keys, values and the mask to what the heads give, and the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.pattern = _Pattern()

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.pattern(queries, keys, mask)
        shared = values.repeat_interleave(queries.shape[2] // values.shape[2], dim=2)
        return torch.einsum("bhqk,bkhd->bqhd", weights.to(values.dtype), shared), weights


def scores(queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """(batch, heads, queries, keys) what the softmax is taken of, from the places of an :class:`AttentionLayer`."""
    shared = keys.repeat_interleave(queries.shape[2] // keys.shape[2], dim=2)
    return torch.einsum("bqhd,bkhd->bhqk", queries, shared) + mask


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """What transformers calls in place of its own attention: (batch, heads, positions, features) each."""
    other = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if other:
        raise ModelError(f"{type(module).__name__} attends with {other[0]}", needed="the softmax of plain scores")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    sizes = (query.shape[0], 1, query.shape[2], key.shape[2])
    mask = query.new_zeros(sizes) if attention_mask is None else attention_mask.expand(sizes)
    # A module without ours is another model's that shares the configuration.
    attend = module._modules.get(_NAME) or _Attend()
    by_token = (part.transpose(1, 2) for part in (query * scale, key, value))
    found: tuple[Tensor, Tensor] = attend(*by_token, mask)
    return found


@contextmanager
def _named(module: nn.Module) -> Iterator[None]:
    """The model's configurations name our implementation, which transformers knows for as long as any of them does."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    tables = (ALL_ATTENTION_FUNCTIONS, _attention), (ALL_MASK_ATTENTION_FUNCTIONS, eager_mask)
    configs: dict[int, Any] = {id(part.config): part.config for part in module.modules() if _configured(part)}
    with _LOCK:
        for table, function in tables:
            table.register(_NAME, function)
        for key, config in configs.items():
            held = _HELD.setdefault(key, _Held(config, config._attn_implementation_internal))
            held.users += 1
            config._attn_implementation_internal = _NAME
    try:
        yield
    finally:
        with _LOCK:
            for key, config in configs.items():
                _HELD[key].users -= 1
                if not _HELD[key].users:
                    config._attn_implementation_internal = _HELD.pop(key).before
            for table, _ in tables:
                if not _HELD:
                    table._global_mapping.pop(_NAME, None)


def _attending(part: nn.Module) -> list[str]:
    """Paths of the modules at or under an attention module that call transformers' table of implementations."""
    return [
        name
        for name, each in part.named_modules()
        if hasattr(each, "is_causal")
        and _configured(each)
        and hasattr(sys.modules.get(type(each).__module__), "ALL_ATTENTION_FUNCTIONS")
        and getattr(each, "sinks", None) is None
        and getattr(each, "attn_logit_softcapping", None) is None
    ]


def _configured(part: nn.Module) -> bool:
    return hasattr(getattr(part, "config", None), "_attn_implementation_internal")
