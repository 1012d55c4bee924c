"""Small GPT-2 models, and what they hold at the last position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from causalmad.tasks.planting import kept


def small_gpt2(
    vocabulary: int, length: int, *, width: int, layers: int, heads: int, inner: int | None = None, spread: float = 0.15
) -> nn.Module:
    """An untrained GPT-2 without dropout.

    Args:
        vocabulary: number of tokens.
        length: number of positions.
        width: of the residual stream.
        layers: number of blocks.
        heads: in each block.
        inner: hidden neurons of each MLP; by default four times the width.
        spread: standard deviation of the initial weights. 0.15 is near 1 / sqrt(width); from GPT-2's 0.02 a narrow
            network starts on a plateau.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=length,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_inner=inner,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        initializer_range=spread,
    )
    model: nn.Module = GPT2LMHeadModel(config)
    return model


def last_logits(model: nn.Module, ids: Tensor) -> Tensor:
    """(n, tokens) logits at the last position."""
    logits: Tensor = model(input_ids=ids, logits_to_keep=1).logits[:, -1]
    return logits


@torch.no_grad()
def last_position(model: nn.Module, ids: Tensor) -> tuple[list[Tensor], Tensor]:
    """The (n, width) residual stream after each block at the last position, and the (n, tokens) logits there."""
    with kept(*model.get_submodule("transformer.h").children()) as streams:
        logits = last_logits(model, ids)
    return [stream[:, -1] for stream in streams], logits
