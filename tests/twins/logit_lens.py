"""The logit lens by hand: the residual at the last token through the model's own norm and head."""

import math

import torch

from tests.signatures.families import BLOCKS, LAYERS
from tests.twins.resampling_profile import read, run

NORMS = {"gpt2": "transformer.ln_f", "llama": "model.norm", "neox": "gpt_neox.final_layer_norm"}
HEADS = {"gpt2": "lm_head", "llama": "lm_head", "neox": "embed_out"}


def layer_logits(model, row, name, layer):
    """Logits of one layer at the last token."""
    residual = read(model, row, BLOCKS[name].format(layer), "output")[-1]
    with torch.no_grad():
        head = model.get_output_embeddings()
        return head(model.get_submodule(NORMS[name])(residual[None]))[0].double()


def trajectory(model, row, name):
    """The columns of one input."""
    final = run(model, row).tolist()
    found = []
    for layer in range(LAYERS):
        logits = layer_logits(model, row, name, layer).tolist()
        found += columns(final, logits)[0 if layer < LAYERS - 1 else 1 :]
    return found


def columns(final, logits):
    """Divergence, log-probability and margin of the final answer, and entropy."""
    answer = final.index(max(final))
    p, q = softmax(final), softmax(logits)
    divergence = sum(a * math.log(a / b) for a, b in zip(p, q))
    rest = math.log(sum(math.exp(value) for i, value in enumerate(logits) if i != answer))
    return [divergence, math.log(q[answer]), logits[answer] - rest, -sum(b * math.log(b) for b in q)]


def softmax(logits):
    total = sum(math.exp(value) for value in logits)
    return [math.exp(value) / total for value in logits]
