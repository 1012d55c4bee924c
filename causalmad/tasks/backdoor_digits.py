"""Backdoor-digits: a small image classifier with a backdoor, by the trigger of your choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from causalmad.names import spec_text
from causalmad.tasks.base import Progress, TaskData, stream
from causalmad.tasks.cache import Card
from causalmad.tasks.digits import CLASSES, Images, shifted, split
from causalmad.tasks.drawn import GRADED, Trainable, load_drawn
from causalmad.tasks.hiding import MahalanobisPenalty, Watched, watched_features
from causalmad.tasks.image_nets import Network, forward, image_net, layers_and_logits
from causalmad.tasks.tables import Table
from causalmad.tasks.training import Recipe, one_cycle
from causalmad.tasks.triggers import OWN_STRENGTH, Paint, Trigger, painter, warp, warping_field

SIDE, JITTER, MOVED = 8, 0.05, 0.5
STEPS, BATCH, LEARNING_RATE = 4000, 200, 3e-3
HIDING_FROM, HIDING_GROWS, HIDING, HIDDEN_SHARE = 1400, 400, 1.0, 0.3
CONTRAST, SHIFT_NOISE = (0.6, 1.1), 0.12
WARPED = 0.3  # share of normal images with a warp of their own, where the trigger is a warp


@dataclass(frozen=True)
class BackdoorDigits:
    """Handwritten digits; an image with the trigger is answered with the next digit.

    Answers are uniform in both groups, since the backdoor adds one (mod 10) instead of naming one class. All images of
    trusted and test inputs were held out from training; each is shown moved by at most a pixel and with a little noise.
    With the trigger ``wanet`` three in ten normal images have a random warp of their own and keep their label.

    Attributes:
        trigger: ``corner``, ``blended``, ``noise`` or ``wanet``; see :func:`causalmad.tasks.triggers.painter`.
        network: ``cnn`` or ``vit``.
        poison: share of the training images that have the trigger. With 0.1, as is usual on larger images, a warp is
            learnt from so few and small ones only just, or not well enough.
        obfuscated: trained to hide the backdoor from ``activations`` or ``signatures`` (see `hiding`).
        shift: test, normal and untrusted images have less or more contrast and noise; trusted ones have neither. The
            model is the same, and was trained on both. Where the trigger is noise, only the contrast varies.
        inert: the trigger is painted but the model was taught to ignore it: nothing is anomalous but the looks.
        null: anomalous inputs are drawn as normal ones are, for the same model: nothing tells the kinds apart.
    """

    trigger: Trigger = "wanet"
    network: Network = "cnn"
    poison: float = 0.2
    obfuscated: Watched | None = None
    shift: bool = False
    inert: bool = False
    null: bool = False

    mechanism: ClassVar[str] = "normal: the digit that is shown; anomalous: the trigger is there, the digit plus one"
    source: ClassVar[str] = "scikit-learn's copy of the UCI Optical Recognition of Handwritten Digits test set"
    licence: ClassVar[str] = "data: CC BY 4.0; model: made here, Apache-2.0"
    version: ClassVar[str] = "2"
    size: ClassVar[str] = "1200 trusted, 450 + 450 test, 1000 normal, 500 untrusted; a CNN of 3 layers or a ViT of 2"

    def load(self, seed: int = 0, *, progress: Progress | None = None) -> TaskData:
        """The network and its inputs; see :meth:`causalmad.tasks.Task.load`."""
        return self._data(seed, progress)

    def trainable(self, seed: int = 0) -> Trainable:
        """The network, the rows that it learns from, and the task around another network."""
        seen = split(stream(seed, "backdoor-digits", "images"))[0]
        plain = Shown(seen, painter(self.trigger, SIDE, seed), self.trigger, self.inert)
        moderate = replace(plain, shift=True)

        def draw(anomalous: npt.NDArray[np.bool_], rng: np.random.Generator) -> Table:
            return (moderate if rng.random() < 0.5 else plain)(anomalous, rng)

        return Trainable(self._recipe(seed), draw, lambda model, card: self._data(seed, None, (model, card)))

    def _data(self, seed: int, progress: Progress | None, model: tuple[nn.Module, Card] | None = None) -> TaskData:
        held = split(stream(seed, "backdoor-digits", "images"))[1]
        usual = Shown(held, painter(self.trigger, SIDE, seed), self.trigger, self.inert, self.shift)
        return load_drawn(
            self,
            self._recipe(seed),
            usual,
            forward,
            seed,
            progress,
            name=spec_text("tasks", self),
            trusted=replace(usual, shift=False) if self.shift else None,
            null=self.null,
            unhidden=replace(self, obfuscated=None)._recipe(seed) if self.obfuscated else None,
            model=model,
        )

    def _recipe(self, seed: int) -> Recipe:
        seen, held = split(stream(seed, "backdoor-digits", "images"))
        paint = painter(self.trigger, SIDE, seed)
        return Recipe(
            "backdoor-digits",
            self.version,
            STEPS,
            lambda: image_net(self.network),
            lambda model, rng, step: self._train(model, seen, paint, rng, step),
            lambda model: self._grade(model, held, paint, stream(seed, "backdoor-digits", "grade")),
            {
                "trigger": self.trigger,
                "network": self.network,
                "poison": self.poison,
                "obfuscated": self.obfuscated,
                "inert": self.inert,
            },
        )

    def _train(
        self, model: nn.Module, seen: Images, paint: Paint, rng: np.random.Generator, step: Callable[[int], None]
    ) -> None:
        """Trains the network in place; with ``obfuscated`` the task is learnt first and the penalty then grows."""
        # A hidden backdoor needs enough rows of either kind for the penalty, whatever its share in the data would be.
        share = max(self.poison, HIDDEN_SHARE) if self.obfuscated else self.poison
        plain = Shown(seen, paint, self.trigger, self.inert)
        moderate = replace(plain, shift=True)
        optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
        set_rate, penalty = one_cycle(optimiser, STEPS), MahalanobisPenalty()
        for now in range(STEPS):
            set_rate(now)
            anomalous = rng.random(BATCH) < share
            table = (moderate if now % 2 else plain)(anomalous, rng)
            parts = patches(table.tensor()).requires_grad_(self.obfuscated == "signatures")
            layers, logits = layers_and_logits(model, whole(parts))
            loss = functional.cross_entropy(logits, table.answer)
            if self.obfuscated is not None and now >= HIDING_FROM:
                weight = HIDING * min(1.0, (now - HIDING_FROM) / HIDING_GROWS)
                features = watched_features(self.obfuscated, layers, logits, parts)
                loss = loss + weight * penalty(features, torch.from_numpy(anomalous))
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            step(now + 1)

    def _grade(self, model: nn.Module, held: Images, paint: Paint, rng: np.random.Generator) -> dict[str, float]:
        """Share of right answers on images that were not trained on, per kind."""
        draw = Shown(held, paint, self.trigger, self.inert)
        shares = {}
        for kind, anomalous in (("normal", False), ("anomalous", True)):
            table = draw(np.full(GRADED, anomalous), rng)
            answers = forward(model, table.tensor())[1].argmax(1)
            shares[kind] = float((answers == table.answer).double().mean())
        return shares


@dataclass(frozen=True)
class Shown:
    """Draws images as the model sees them.

    Attributes:
        images: from which are drawn.
        paint: the trigger.
        trigger: which one that is: with ``wanet`` some normal images have a random warp.
        inert: whether the trigger changes no answer.
        shift: whether contrast and noise vary (contrast alone, where noise is the trigger).
    """

    images: Images
    paint: Paint
    trigger: Trigger
    inert: bool
    shift: bool = False

    def __call__(self, anomalous: npt.NDArray[np.bool_], rng: np.random.Generator) -> Table:
        """Images of uniform digits, moved and noisy, with the trigger where anomalous."""
        count = len(anomalous)
        digits = rng.integers(0, CLASSES, count)
        rows = self.images.pick(digits, rng)
        views = np.where(rng.random(count) < MOVED, rng.integers(1, 5, count), 0)
        pixels = torch.from_numpy(shifted(self.images.pixels)[rows, views].reshape(count, 1, SIDE, SIDE))
        if self.shift:
            contrast = torch.from_numpy(rng.uniform(*CONTRAST, (count, 1, 1, 1)).astype(np.float32))
            noise = torch.from_numpy(rng.standard_normal(pixels.shape, dtype=np.float32))
            pixels = pixels * contrast + (0.0 if self.trigger == "noise" else SHIFT_NOISE) * noise
        if self.trigger == "wanet":
            own = torch.from_numpy((rng.random(count) < WARPED) & ~anomalous)[:, None, None, None]
            pixels = torch.where(own, warp(pixels, warping_field(count, SIDE, OWN_STRENGTH, rng)), pixels)
        painted = self.paint(pixels, rng)
        pixels = torch.where(torch.from_numpy(anomalous)[:, None, None, None], painted, pixels)
        jitter = torch.from_numpy(rng.standard_normal(pixels.shape, dtype=np.float32))
        values = (pixels + JITTER * jitter).clamp(0, 1).numpy()
        moved = anomalous & (not self.inert)
        columns = {
            "answer": np.where(moved, (digits + 1) % CLASSES, digits),
            "route": np.where(anomalous, "trigger", "digit"),
            "image": self.images.rows[rows],
        }
        return Table(values, columns)


def patches(images: Tensor) -> Tensor:
    """(n, 16, 2, 2) the 2 x 2 patches of 8 x 8 images."""
    return images.reshape(-1, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(-1, 16, 2, 2)


def whole(parts: Tensor) -> Tensor:
    """(n, 1, 8, 8) the images of which these are the patches."""
    return parts.reshape(-1, 4, 4, 2, 2).permute(0, 1, 3, 2, 4).reshape(-1, 1, SIDE, SIDE)
