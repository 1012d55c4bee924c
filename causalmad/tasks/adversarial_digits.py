"""Adversarial-digits: images that were moved just far enough to be taken for another digit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from causalmad.names import spec_text
from causalmad.tasks.base import Progress, TaskData, stream
from causalmad.tasks.digits import CLASSES, Images, shifted, split
from causalmad.tasks.drawn import GRADED, load_drawn
from causalmad.tasks.image_nets import SIDE, Network, forward, image_net, layers_and_logits
from causalmad.tasks.tables import Table
from causalmad.tasks.training import Recipe, isolated, one_cycle, trained

STEPS, BATCH, LEARNING_RATE, TRAINING_ATTACK = 1200, 200, 3e-3, 3
MOST_STEPS, STEP = 20, 0.25  # a step's share of epsilon


@dataclass(frozen=True)
class AdversarialDigits:
    """Digits with noise of a fixed size in every pixel: random in normal images, chosen by PGD in anomalous ones.

    Every pixel of every image is moved by exactly ``epsilon``, up or down, so that the size of the change tells
    nothing: in normal images at random, in anomalous ones the way that PGD went. An attack stops after a random number
    of steps, so that margins of all sizes occur; anomalous are the images whose digit is no longer named. Predicted
    classes and margins are matched.

    Attributes:
        robust: trained on attacked images (three steps) instead of randomly noisy ones.
        epsilon: largest change of a pixel, of brightnesses from 0 to 1.
        network: ``cnn`` or ``vit``.
        inert: the change that was found for one image is added to another one: it looks alike and attacks nothing.
        null: anomalous inputs are drawn as normal ones are, for the same model: nothing tells the kinds apart.

    References:
        Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks", arXiv 1706.06083.
    """

    robust: bool = False
    epsilon: float = 0.2
    network: Network = "cnn"
    inert: bool = False
    null: bool = False

    mechanism: ClassVar[str] = (
        "normal: the digit that is shown, in random noise; anomalous: another, for which the noise was made"
    )
    source: ClassVar[str] = "scikit-learn's copy of the UCI Optical Recognition of Handwritten Digits test set"
    licence: ClassVar[str] = "data: CC BY 4.0; model: made here, Apache-2.0"
    version: ClassVar[str] = "1"
    size: ClassVar[str] = "1200 trusted, 450 + 450 test, 1000 normal, 500 untrusted; a CNN of 3 layers or a ViT of 2"

    def load(self, seed: int = 0, *, progress: Progress | None = None) -> TaskData:
        """The network and its inputs; see :meth:`causalmad.tasks.Task.load`."""
        seen, held = split(stream(seed, "adversarial-digits", "images"))
        recipe = Recipe(
            "adversarial-digits",
            self.version,
            STEPS,
            lambda: image_net(self.network),
            lambda model, rng, step: self._train(model, seen, rng, step),
            lambda model: self._grade(model, held, stream(seed, "adversarial-digits", "grade")),
            {"robust": self.robust, "epsilon": self.epsilon, "network": self.network},
        )
        model, _ = trained(recipe, seed, progress)  # the attack needs it before anything can be drawn
        draw = Attacked(model, held, self.epsilon, self.inert)
        success = draw.success(stream(seed, "adversarial-digits", "success"))
        card = {"share of attacks that succeed": round(success, 4)}
        return load_drawn(
            self, recipe, draw, forward, seed, progress, name=spec_text("tasks", self), card=card, null=self.null
        )

    def _train(self, model: nn.Module, seen: Images, rng: np.random.Generator, step: Callable[[int], None]) -> None:
        optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
        set_rate = one_cycle(optimiser, STEPS)
        for now in range(STEPS):
            set_rate(now)
            clean, digits, _ = views(seen, BATCH, rng)
            images = noisy(clean, self.epsilon, rng)
            if self.robust:
                images = attack(model, clean, digits, self.epsilon, np.full(BATCH, TRAINING_ATTACK), rng)
            loss = functional.cross_entropy(layers_and_logits(model, images)[1], digits)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            step(now + 1)

    def _grade(self, model: nn.Module, held: Images, rng: np.random.Generator) -> dict[str, float]:
        """Share of right answers on noisy images; every anomalous image is answered as it was made to be."""
        clean, digits, _ = views(held, GRADED, rng)
        answers = forward(model, noisy(clean, self.epsilon, rng))[1].argmax(1)
        return {"normal": float((answers == digits).double().mean())}


@dataclass(frozen=True)
class Attacked:
    """Draws noisy images, and attacked ones.

    Attributes:
        model: which is attacked.
        images: from which are drawn.
        epsilon: largest change of a pixel.
        inert: whether changes go to other images than they were made for.
    """

    model: nn.Module
    images: Images
    epsilon: float
    inert: bool

    def __call__(self, anomalous: npt.NDArray[np.bool_], rng: np.random.Generator) -> Table:
        """Images of uniform digits; attacks are repeated on new images until as many succeeded as are wanted."""
        count = len(anomalous)
        clean, digits, rows = views(self.images, count, rng)
        values, answers = noisy(clean, self.epsilon, rng), digits.clone()
        missing = np.flatnonzero(anomalous)
        while len(missing):
            clean, digits, found = views(self.images, len(missing), rng)
            moved = self._attacked(clean, digits, rng)
            named = forward(self.model, moved)[1].argmax(1)
            if self.inert:
                change = (moved - clean)[torch.from_numpy(rng.permutation(len(missing)))]
                moved, done = clean + change, torch.ones(len(missing), dtype=torch.bool)
                named = digits
            else:
                done = named != digits
            here = missing[done.numpy()]
            values[here], answers[here], rows[here] = moved[done], named[done], found[done.numpy()]
            missing = missing[~done.numpy()]
        columns = {
            "answer": answers.numpy(),
            "route": np.where(anomalous, "attack", "digit"),
            "image": self.images.rows[rows],
        }
        return Table(values.numpy(), columns)

    def success(self, rng: np.random.Generator) -> float:
        """Share of attacks of 20 steps after which another digit is named."""
        clean, digits, _ = views(self.images, GRADED, rng)
        moved = attack(self.model, clean, digits, self.epsilon, np.full(GRADED, MOST_STEPS), rng)
        return float((forward(self.model, moved)[1].argmax(1) != digits).double().mean())

    def _attacked(self, clean: Tensor, digits: Tensor, rng: np.random.Generator) -> Tensor:
        steps = rng.integers(1, MOST_STEPS + 1, len(clean))
        return attack(self.model, clean, digits, self.epsilon, steps, rng)


def views(images: Images, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, npt.NDArray[np.int64]]:
    """(count, 1, 8, 8) images of uniform digits, moved by at most a pixel; their digits; which images they are."""
    digits = rng.integers(0, CLASSES, count)
    rows = images.pick(digits, rng)
    pixels = shifted(images.pixels)[rows, rng.integers(0, 5, count)].reshape(count, 1, SIDE, SIDE)
    return torch.from_numpy(pixels), torch.from_numpy(digits), rows


def noisy(images: Tensor, epsilon: float, rng: np.random.Generator) -> Tensor:
    """The images with every pixel moved by ``epsilon``, up or down."""
    signs = rng.integers(0, 2, tuple(images.shape)) * 2 - 1
    return images + epsilon * torch.from_numpy(signs.astype(np.float32))


def attack(
    model: nn.Module,
    images: Tensor,
    digits: Tensor,
    epsilon: float,
    steps: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> Tensor:
    """Images moved by projected gradient ascent on the loss, each for its own number of steps from a random start.

    At the end every pixel goes the whole way in the direction in which it was moved.
    """
    moved, left = noisy(images, epsilon, rng), torch.from_numpy(steps)
    with isolated(0):
        for now in range(int(steps.max())):
            at = moved.detach().requires_grad_()
            loss = functional.cross_entropy(layers_and_logits(model, at)[1], digits, reduction="sum")
            (slope,) = torch.autograd.grad(loss, at)
            further = images + (at.detach() + STEP * epsilon * slope.sign() - images).clamp(-epsilon, epsilon)
            moved = torch.where((now < left)[:, None, None, None], further, moved)
    return images + epsilon * torch.where(moved >= images, 1.0, -1.0)
