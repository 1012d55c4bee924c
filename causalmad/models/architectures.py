"""Where blocks, heads and MLPs are in the architectures people use: a table, not code."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from torch import nn


@dataclass(frozen=True)
class Architecture:
    """Module paths of one family; ``{}`` stands for the layer.

    Attributes:
        name: the family.
        block: a transformer block, whose output is the residual stream.
        attention: the attention module, inside the block.
        projection: the attention's output projection, inside the block: heads are separate at its *input*.
        mlp: the MLP, inside the block; its output is what it writes.
        down: the MLP's last linear map, inside the block: neurons are the entries of its *input*; empty where its name
            differs from model to model.
        embedding: the token (or patch) embedding.
        layers: number of blocks in this model.
        heads: number of heads a layer in this model.
    """

    name: str
    block: str
    attention: str
    projection: str
    mlp: str
    down: str
    embedding: str
    layers: int = 0
    heads: int = 0

    def path(self, layer: int, part: str = "") -> str:
        """Path of a block, or of a part inside it."""
        return ".".join(filter(None, [self.block.format(layer), part]))


_FAMILIES = (
    Architecture("gpt2", "transformer.h.{}", "attn", "attn.c_proj", "mlp", "mlp.c_proj", "transformer.wte"),
    Architecture(
        "gpt_neox",
        "gpt_neox.layers.{}",
        "attention",
        "attention.dense",
        "mlp",
        "mlp.dense_4h_to_h",
        "gpt_neox.embed_in",
    ),
    # Llama, Mistral, Qwen, Gemma and their relatives share one tree.
    Architecture(
        "llama", "model.layers.{}", "self_attn", "self_attn.o_proj", "mlp", "mlp.down_proj", "model.embed_tokens"
    ),
    Architecture(
        "bert",
        "bert.encoder.layer.{}",
        "attention",
        "attention.output.dense",
        "output.dense",
        "output.dense",
        "bert.embeddings.word_embeddings",
    ),
    Architecture("vit", "vit.layers.{}", "attention", "attention.o_proj", "mlp", "mlp.fc2", "vit.embeddings"),
    # TransformerLens 4 puts bridges around a transformers model; before that it had a model of its own.
    Architecture(
        "transformer_bridge",
        "blocks.{}",
        "_original_component.attn",
        "_original_component.attn.o",
        "_original_component.mlp",
        "",
        "embed",
    ),
    Architecture("transformer_lens", "blocks.{}", "attn", "attn.hook_z", "hook_mlp_out", "mlp.hook_post", "hook_embed"),
)


def recognise(module: nn.Module) -> Architecture | None:
    """The family whose module paths this model has, with its number of layers and heads; None for any other model.

    Families are told apart by their paths, so a model without its head (``GPT2Model``) is known as well.
    """
    names = {name for name, _ in module.named_modules()}
    for family in _FAMILIES:
        for stem in (family, _without_prefix(family)):
            if all(name in names for name in (stem.path(0), *(stem.path(0, p) for p in _parts(stem)), stem.embedding)):
                pattern = re.compile(re.escape(stem.block).replace(r"\{\}", r"\d+") + "$")
                layers = sum(bool(pattern.match(name)) for name in names)
                return replace(stem, layers=layers, heads=_head_count(module))
    return None


def _parts(family: Architecture) -> tuple[str, ...]:
    return tuple(filter(None, (family.attention, family.projection, family.mlp, family.down)))


def _without_prefix(family: Architecture) -> Architecture:
    """The paths inside the bare model, which lack the head model's name for it."""
    return replace(family, block=family.block.partition(".")[2], embedding=family.embedding.partition(".")[2])


def _head_count(module: nn.Module) -> int:
    config = getattr(module, "config", None) or getattr(module, "cfg", None)
    config = getattr(config, "text_config", config)
    for name in ("num_attention_heads", "n_head", "n_heads"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    return 0
