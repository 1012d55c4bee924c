"""Your own nnsight code as a signature: what it returns inside a trace becomes the columns of a detector."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import causalmad as cm
from causalmad.signatures.traced import Traced


def logit_lens(model: Any, tracer: Any) -> dict[str, Tensor]:
    """How sure each layer already is of its own guess (nats), and how large each MLP's contribution is."""
    found = {}
    for layer, block in enumerate(model.transformer.h):
        found[f"mlp {layer}"] = block.mlp.output[:, -1].norm(dim=-1)
        guess = model.lm_head._module(model.transformer.ln_f._module(block.output[:, -1]))
        found[f"lens {layer}"] = guess.log_softmax(-1).max(-1).values
    return found


def main() -> None:
    """Fit on short prompts of a small GPT-2, and look at prompts that repeat one token."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"n_layer": 3, "n_head": 4, "n_embd": 32, "vocab_size": 64, "n_positions": 16}
        config = GPT2Config(**sizes, initializer_range=0.3, bos_token_id=0, eos_token_id=0)
        model = GPT2LMHeadModel(config).eval()
    draw = np.random.default_rng(0)
    prompts = [{"input_ids": draw.integers(1, 64, draw.integers(4, 12)).tolist()} for _ in range(220)]
    fitted = cm.Detector(Traced(logit_lens)).fit(model, prompts[:200], seed=0)
    print([column.name for column in fitted.signature.columns])
    repeated = [{"input_ids": [token] * 10} for token in range(1, 21)]
    usual, odd = fitted.score(prompts[200:]), fitted.score(repeated)
    print(f"median score of fresh prompts {np.median(usual):.2f}, of repeated tokens {np.median(odd):.2f}")
    fitted.detect(repeated, alpha=0.05).explain(0).show(4)
    if np.median(odd) < np.median(usual):
        raise SystemExit("repeating one token should look unusual")


if __name__ == "__main__":
    main()
