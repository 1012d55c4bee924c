"""Where things are in the toys' models, written by hand: the twins do not ask the library."""

import copy

from causalmad.testing.toys import toy

BLOCKS = {"gpt2": "transformer.h.{}", "llama": "model.layers.{}", "neox": "gpt_neox.layers.{}"}
PROJECTIONS = {"gpt2": "attn.c_proj", "llama": "self_attn.o_proj", "neox": "attention.dense"}
EMBEDDINGS = {"gpt2": "transformer.wte", "llama": "model.embed_tokens", "neox": "gpt_neox.embed_in"}
LAYERS, HEADS, WIDTH = 2, 2, 8


def small(name, trusted=12, fresh=4):
    """A toy, and a copy of its model in eval mode for the twin."""
    made = toy(name, trusted, fresh)
    return made, copy.deepcopy(made.model).eval()


def head_places(name):
    """(path, features) of every head, in order."""
    for layer in range(LAYERS):
        path = f"{BLOCKS[name].format(layer)}.{PROJECTIONS[name]}"
        for head in range(HEADS):
            yield path, slice(head * WIDTH, (head + 1) * WIDTH)
