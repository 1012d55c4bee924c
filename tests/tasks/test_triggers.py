"""Triggers are what the papers say; a zero warp is the identity and does not transpose."""

import numpy as np
import torch

from causalmad.tasks.backdoor_digits import patches, whole
from causalmad.tasks.base import stream
from causalmad.tasks.triggers import BLEND, painter, warp, warping_field

IMAGES = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_warp_of_no_strength_is_the_identity():
    field = warping_field(50, 8, 0.0, np.random.default_rng(0))
    torch.testing.assert_close(warp(IMAGES, field), IMAGES)
    assert not torch.allclose(warp(IMAGES, field), IMAGES.transpose(2, 3))


def test_a_warp_moves_pixels_by_its_strength():
    identity, field = (warping_field(2000, 8, s, np.random.default_rng(0)) for s in (0.0, 0.5))
    inner = (field - identity)[:, 2:6, 2:6]  # at the edges it is cut off
    assert 0.3 < float(inner.abs().mean()) * 4 < 0.6  # from [-1, 1] to pixels; interpolation evens some of it out


def test_the_same_seed_gives_the_same_trigger():
    for trigger in ("blended", "wanet"):
        first, second, other = (painter(trigger, 8, seed)(IMAGES, stream(0)) for seed in (1, 1, 2))
        assert torch.equal(first, second)
        assert not torch.allclose(first, other)


def test_the_corner_is_the_top_left_one():
    changed = painter("corner", 8, 0)(IMAGES, stream(0)) != IMAGES
    assert changed[:, 0, 0, 0].all() and changed.sum() == len(IMAGES)


def test_a_blend_is_a_mixture_and_noise_is_new_each_time():
    blended = painter("blended", 8, 3)(IMAGES, stream(0))
    pattern = (blended - (1 - BLEND) * IMAGES) / BLEND
    torch.testing.assert_close(pattern, pattern[:1].expand_as(pattern), atol=1e-4, rtol=0)
    noisy = painter("noise", 8, 0)(IMAGES, stream(0)) - IMAGES
    assert not torch.allclose(noisy[0], noisy[1])


def test_patches_are_patches():
    parts = patches(IMAGES)
    assert torch.equal(whole(parts), IMAGES)
    assert torch.equal(parts[7, 6], IMAGES[7, 0, 2:4, 4:6])
