"""Triggers on images: the ways in which a backdoor is painted into one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from causalmad.tasks.base import stream

Trigger: TypeAlias = Literal["corner", "blended", "noise", "wanet"]
Paint: TypeAlias = Callable[[Tensor, np.random.Generator], Tensor]
"""From (n, 1, size, size) images in [0, 1] to the same images with the trigger."""

BLEND, NOISE, CONTROL = 0.2, 0.15, 4
STRENGTH, OWN_STRENGTH = 0.9, 0.4  # pixels: of the trigger's warp, and of a normal image's own


def painter(trigger: Trigger, size: int, seed: int) -> Paint:
    """The function that paints a trigger; whatever is fixed about it follows from the seed.

    - ``corner``: the pixel in the top left corner is 1 (BadNets; Gu et al. 2017, arXiv 1708.06733).
    - ``blended``: a fifth of a fixed random pattern is mixed in (Chen et al. 2017, arXiv 1712.05526).
    - ``noise``: Gaussian noise of standard deviation 0.15, new for each image, clamped to [0, 1]. (With 0.3, as on
      larger images, one in eight 8 x 8 digits can no longer be read.)
    - ``wanet``: a fixed smooth warp (Nguyen and Tran 2021, arXiv 2102.10369).
    """
    rng = stream(seed, "trigger", trigger)
    if trigger == "corner":
        return _corner
    if trigger == "blended":
        pattern = torch.from_numpy(rng.random((1, 1, size, size), dtype=np.float32))
        return lambda images, _: (1 - BLEND) * images + BLEND * pattern
    if trigger == "noise":
        return lambda images, draw: (images + NOISE * _normal(images.shape, draw)).clamp(0, 1)
    field = warping_field(1, size, STRENGTH, rng)
    return lambda images, _: warp(images, field.expand(len(images), -1, -1, -1))


def warping_field(count: int, size: int, strength: float, rng: np.random.Generator) -> Tensor:
    """(count, size, size, 2) where each pixel is taken from: (x, y) in [-1, 1], the identity plus a smooth field.

    A control grid of 4 x 4 uniform numbers, divided by their mean size, is enlarged bicubically; pixels move by
    ``strength`` on average. (Half a pixel, as on larger images, is lost in 8 x 8.) ``grid_sample`` wants x before y:
    the other way round, the identity would transpose the image.
    """
    control = torch.from_numpy(rng.uniform(-1, 1, (count, 2, CONTROL, CONTROL)).astype(np.float32))
    control = control / control.abs().mean((1, 2, 3), keepdim=True) * strength
    field = interpolate(control, size=size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    line = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return (torch.stack([x, y], dim=-1) + field * 2 / size).clamp(-1, 1)


def warp(images: Tensor, field: Tensor) -> Tensor:
    """(n, 1, size, size) images with each pixel taken from where the (n, size, size, 2) field says."""
    return grid_sample(images, field, mode="bilinear", align_corners=True)


def _corner(images: Tensor, rng: np.random.Generator) -> Tensor:
    painted = images.clone()
    painted[:, :, 0, 0] = 1.0
    return painted


def _normal(shape: torch.Size, rng: np.random.Generator) -> Tensor:
    numbers: npt.NDArray[np.float32] = rng.standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(numbers)
