"""Small image classifiers: a convolutional network and a vision transformer, and what they hold inside."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from causalmad.tasks.planting import kept

Network: TypeAlias = Literal["cnn", "vit"]

CLASSES, SIDE = 10, 8
WIDTH, LAYERS, HEADS, PATCH = 32, 2, 4, 2


def image_net(network: Network) -> nn.Module:
    """An untrained classifier of 8 x 8 images: three convolutions, or a ViT of two layers over 16 patches."""
    return _cnn() if network == "cnn" else _vit()


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, CLASSES),
    )


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH,
        "image_size": SIDE,
        "patch_size": PATCH,
        "num_channels": 1,
        "num_labels": CLASSES,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.1,
        "attn_implementation": "eager",  # the penalties differentiate twice
    }
    model: nn.Module = ViTForImageClassification(ViTConfig(**sizes))
    return model


def layers_and_logits(model: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """The (n, width) activations of each layer, averaged over space or patches, and the (n, 10) logits."""
    if isinstance(model, nn.Sequential):
        parts: list[nn.Module] = [part for part in model if isinstance(part, nn.ReLU)]
    else:
        parts = list(model.get_submodule("vit.layers").children())
    with kept(*parts) as values:
        found = model(images)
    logits: Tensor = found if isinstance(found, Tensor) else found.logits
    return [value.flatten(2).mean(2) if value.ndim == 4 else _over_patches(value) for value in values], logits


@torch.no_grad()
def forward(model: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """What :func:`layers_and_logits` gives, without gradients."""
    return layers_and_logits(model, images)


def _over_patches(value: Tensor) -> Tensor:
    return value.mean(1) if value.ndim == 3 else value
