"""Sparse autoencoders: trained on trusted activations, or read from a file."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from causalmad.errors import FitError

_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
_BATCH = 256
_RATE = 3e-3
_AUXILIARY = 1 / 32  # weight of the loss by which latents that have died are revived
_DEAD = 50  # steps without being active


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """A sparse autoencoder of activations.

    Attributes:
        W_enc: (features, latents).
        b_enc: (latents,).
        W_dec: (latents, features).
        b_dec: (features,).
        centre: (features,) is subtracted before encoding: zero, or ``b_dec``.
        threshold: (latents,) latents at or below it are zero.
        k: only the largest latents are kept, as many as this; 0 keeps all.
        scale: activations are divided by it first, and reconstructions multiplied by it.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    centre: Tensor
    threshold: Tensor
    k: int = 0
    scale: float = 1.0

    def encode(self, values: Tensor) -> Tensor:
        """(n, latents) of activations (n, features), never negative."""
        found = (values / self.scale - self.centre) @ self.W_enc + self.b_enc
        found = torch.where(found > self.threshold, found, 0).relu()
        if not 0 < self.k < found.shape[-1]:
            return found
        top, where = found.topk(self.k, dim=-1)
        return torch.zeros_like(found).scatter(-1, where, top)

    def decode(self, latents: Tensor) -> Tensor:
        """(n, features) reconstructions."""
        return (latents @ self.W_dec + self.b_dec) * self.scale

    def tensors(self) -> dict[str, Tensor]:
        """The arrays by name; :meth:`of` is the way back."""
        arrays = {name: getattr(self, name) for name in (*_NAMES, "centre", "threshold")}
        return {name: value.contiguous() for name, value in arrays.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], k: int, scale: float) -> Autoencoder:
        """The autoencoder whose :meth:`tensors` these are."""
        own: dict[str, Any] = {name: tensors[name] for name in (*_NAMES, "centre", "threshold")}
        return cls(**own, k=k, scale=scale)


def train(values: Tensor, latents: int, k: int, steps: int, seed: int) -> Autoencoder:
    """A top-k autoencoder of activations (n, features), the same for the same seed.

    Mean squared error of the standardised activations with Adam; decoder directions have length 1, and latents that
    have been silent for a while are pulled towards what the others leave over.
    """
    draw = torch.Generator().manual_seed(seed)
    mean = values.double().mean(0)
    spread = float((values.double() - mean).square().sum(-1).mean().sqrt()) / values.shape[1] ** 0.5
    scale = spread or 1.0
    data = (values.double() / scale).float()
    directions = torch.randn(latents, values.shape[1], generator=draw)
    directions /= directions.norm(dim=1, keepdim=True)
    bias = data.mean(0)
    zeros = torch.zeros(latents)
    with torch.inference_mode(False), torch.enable_grad():
        start = (directions.T.clone(), zeros.clone(), directions.clone(), bias.clone())
        leaves = [value.requires_grad_(True) for value in start]
        adam = torch.optim.Adam(leaves, lr=_RATE)
        silent = torch.zeros(latents, dtype=torch.long)
        for _ in range(steps):
            rows = torch.randint(len(data), (min(_BATCH, len(data)),), generator=draw)
            some = Autoencoder(leaves[0], leaves[1], leaves[2], leaves[3], leaves[3], zeros, k)
            found = some.encode(data[rows])
            left = data[rows] - some.decode(found)
            loss = left.square().mean()
            dead = silent >= _DEAD
            if bool(dead.any()):
                codes = ((data[rows] - leaves[3]) @ leaves[0] + leaves[1]).relu() * dead
                top, where = codes.topk(min(2 * k, latents), dim=-1)
                extra = torch.zeros_like(codes).scatter(-1, where, top) @ leaves[2]
                loss = loss + _AUXILIARY * (left.detach() - extra).square().mean()
            gradients = torch.autograd.grad(loss, leaves)
            for leaf, gradient in zip(leaves, gradients):
                leaf.grad = gradient
            adam.step()
            with torch.no_grad():
                leaves[2] /= leaves[2].norm(dim=1, keepdim=True).clamp(min=1e-8)
                silent = torch.where((found > 0).any(0), 0, silent + 1)
    arrays = [leaf.detach().clone() for leaf in leaves]
    return Autoencoder(arrays[0], arrays[1], arrays[2], arrays[3], arrays[3], zeros, k, scale)


def load(where: str, k: int) -> Autoencoder:
    """The autoencoder in a safetensors file, a folder of sae-lens, or on the hub as ``release:id``.

    Args:
        where: the path, or the name.
        k: for a file without a configuration, how many latents are kept; 0 keeps all that are positive.

    Raises:
        FitError: when there is no such file, or it holds no autoencoder of a known kind.
    """
    path = Path(where)
    if path.is_dir():
        return _configured(_read(path / "sae_weights.safetensors"), _config(path / "cfg.json"), where)
    if path.is_file():
        return _made(_read(path), k, subtract=True, where=where)
    release, colon, name = where.partition(":")
    if not colon or "/" in name.partition(".")[0]:
        raise FitError(
            f"no autoencoder at {where!r}",
            needed="a safetensors file, a folder with cfg.json and sae_weights.safetensors, or 'release:id'",
        )
    try:
        hub: Any = importlib.import_module("sae_lens")
    except ImportError as error:
        raise FitError(
            f"{where!r} is the name of an autoencoder on the hub, and sae-lens is not installed",
            tries=["pip install causalmad[sae]", "the path of a file that is here"],
        ) from error
    found: Any = hub.SAE.from_pretrained(release, name)
    sae = found[0] if isinstance(found, tuple) else found  # before version 6 the configuration came beside it
    tensors = {key: value.detach().cpu() for key, value in sae.state_dict().items()}
    return _configured(tensors, sae.cfg.to_dict(), where)


def _configured(tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> Autoencoder:
    """An autoencoder of sae-lens."""
    kind = str(config.get("architecture", "standard"))
    activation = str(config.get("activation_fn", config.get("activation_fn_str", "relu")))
    scaling = config.get("normalize_activations") or "none"
    known = kind in ("standard", "topk", "jumprelu") and activation in ("relu", "topk", "jumprelu")
    # The factor of "expected_average_only_in" is part of the weights once they are saved.
    if not known or scaling not in ("none", "expected_average_only_in"):
        raise FitError(
            f"{where!r} is a {kind} autoencoder with {activation}, normalize_activations={scaling!r}",
            needed="a standard, topk or jumprelu one whose activations are not normalised",
        )
    k = 0
    if "topk" in (kind, activation):
        k = int(config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k") or 0)
        if k < 1:
            raise FitError(f"the configuration of {where!r} does not say how many latents are kept", needed="k")
    if config.get("rescale_acts_by_decoder_norm"):
        raise FitError(
            f"{where!r} weighs its latents by the lengths of their decoder directions (rescale_acts_by_decoder_norm)",
            needed="an autoencoder whose largest latents are kept as they are",
        )
    if kind == "jumprelu" and "threshold" not in tensors:
        raise FitError(f"{where!r} is a jumprelu autoencoder without thresholds", needed="an array 'threshold'")
    return _made(tensors, k, subtract=bool(config.get("apply_b_dec_to_input", True)), where=where)


def _made(tensors: Mapping[str, Tensor], k: int, *, subtract: bool, where: str) -> Autoencoder:
    missing = [name for name in _NAMES if name not in tensors]
    if missing:
        raise FitError(f"{where!r} has no {', '.join(missing)}", needed=f"the arrays {', '.join(_NAMES)}")
    shapes = {name: tuple(tensors[name].shape) for name in (*_NAMES, "threshold") if name in tensors}
    ends = shapes["W_enc"]
    wanted: dict[str, tuple[int, ...]] = {}
    if len(ends) == 2:
        features, latents = ends
        wanted = {"W_enc": ends, "b_enc": (latents,), "W_dec": (latents, features), "b_dec": (features,)}
        wanted |= {"threshold": (latents,)} if "threshold" in shapes else {}
    if shapes != wanted:
        raise FitError(
            f"{where!r} has arrays of shapes {shapes}",
            needed="W_enc (features, latents), b_enc (latents,), W_dec (latents, features), b_dec (features,)",
        )
    arrays = {name: tensors[name].float() for name in _NAMES}
    centre = arrays["b_dec"] if subtract else torch.zeros_like(arrays["b_dec"])
    threshold = tensors["threshold"].float() if "threshold" in tensors else torch.zeros_like(arrays["b_enc"])
    return Autoencoder.of({**arrays, "centre": centre, "threshold": threshold}, k, 1.0)


def _config(path: Path) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FitError(f"{path} cannot be read: {error}", needed="the cfg.json of a sae-lens autoencoder") from error
    return found


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise FitError(f"{path} cannot be read: {error}", needed="a safetensors file of an autoencoder") from error
