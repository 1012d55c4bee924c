"""Where blocks, heads and MLPs are in the architectures people use: a table, not code."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from torch import nn


@dataclass(frozen=True)
class Wiring:
    """How the blocks of a pre-norm transformer read the residual stream; paths inside a block, but for the last norm.

    Attributes:
        attention_norm: through which the attention reads.
        mlp_norm: through which the MLP reads.
        final_norm: path of the norm before the logits, in the model.
        queries: the projection that makes queries.
        keys: the projection that makes keys.
        values: the projection that makes values.
        layout: of its output: ``apart`` (three projections), ``stacked`` (one; all queries, all keys, all values) or
            ``interleaved`` (one; query, key and value of each head in turn).
        parallel: name of the configuration's flag under which the MLP reads beside the attention and not after it.
        post_norm: a module inside the block whose presence means that what is written passes through a norm.
    """

    attention_norm: str
    mlp_norm: str
    final_norm: str
    queries: str
    keys: str
    values: str
    layout: str = "apart"
    parallel: str = ""
    post_norm: str = ""


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
        wiring: how the blocks read the residual stream, for families whose edges can be patched.
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
    wiring: Wiring | None = None

    def path(self, layer: int, part: str = "") -> str:
        """Path of a block, or of a part inside it."""
        return ".".join(filter(None, [self.block.format(layer), part]))


_FAMILIES = (
    Architecture(
        "gpt2",
        "transformer.h.{}",
        "attn",
        "attn.c_proj",
        "mlp",
        "mlp.c_proj",
        "transformer.wte",
        wiring=Wiring("ln_1", "ln_2", "transformer.ln_f", "attn.c_attn", "attn.c_attn", "attn.c_attn", "stacked"),
    ),
    Architecture(
        "gpt_neox",
        "gpt_neox.layers.{}",
        "attention",
        "attention.dense",
        "mlp",
        "mlp.dense_4h_to_h",
        "gpt_neox.embed_in",
        wiring=Wiring(
            "input_layernorm",
            "post_attention_layernorm",
            "gpt_neox.final_layer_norm",
            "attention.query_key_value",
            "attention.query_key_value",
            "attention.query_key_value",
            "interleaved",
            "use_parallel_residual",
        ),
    ),
    # Llama, Mistral, Qwen, Gemma and their relatives share one tree.
    Architecture(
        "llama",
        "model.layers.{}",
        "self_attn",
        "self_attn.o_proj",
        "mlp",
        "mlp.down_proj",
        "model.embed_tokens",
        wiring=Wiring(
            "input_layernorm",
            "post_attention_layernorm",
            "model.norm",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            post_norm="post_feedforward_layernorm",
        ),
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
    wiring = family.wiring and replace(family.wiring, final_norm=family.wiring.final_norm.partition(".")[2])
    return replace(
        family, block=family.block.partition(".")[2], embedding=family.embedding.partition(".")[2], wiring=wiring
    )


def _head_count(module: nn.Module) -> int:
    config = getattr(module, "config", None) or getattr(module, "cfg", None)
    config = getattr(config, "text_config", config)
    for name in ("num_attention_heads", "n_head", "n_heads"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    return 0
