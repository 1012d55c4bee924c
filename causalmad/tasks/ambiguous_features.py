"""Ambiguous-features: an image and a tag say the same thing, until they do not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import nn

from causalmad.names import spec_text
from causalmad.tasks.base import Progress, TaskData, stream
from causalmad.tasks.cache import Card
from causalmad.tasks.digits import CLASSES, PIXELS, Images, shifted, split
from causalmad.tasks.drawn import Trainable, load_drawn
from causalmad.tasks.flat_nets import flat_net, forward, learn, shares_right
from causalmad.tasks.hiding import Watched
from causalmad.tasks.tables import Table
from causalmad.tasks.training import Recipe

WIDTH = PIXELS + 16  # six of the sixteen entries of the tag are noise
BLOCKS = {"image": (0, PIXELS), "tag": (PIXELS, WIDTH)}
WEAK, STRONG = (0.5, 0.9), (1.1, 1.5)
STEPS, NOISE, SHIFT_NOISE, DISAGREE = 2000, 0.05, 0.1, 0.3


@dataclass(frozen=True)
class AmbiguousFeatures:
    """A digit image, and a tag that names a digit, weakly or strongly; normally both are of the same digit.

    Where they disagree, a weak tag is ignored (three in ten normal inputs) and a strong one is believed (the
    anomalous ones). Strong tags and disagreements are both usual; only their conjunction is not. Answers are uniform in
    both groups.

    Attributes:
        obfuscated: trained to hide the second mechanism from ``activations`` or ``signatures``.
        shift: test, normal and untrusted inputs are noisier than trusted ones.
        inert: the network was taught never to believe a tag that disagrees.
        null: anomalous inputs are drawn as normal ones are, for the same model: nothing tells the kinds apart.

    References:
        Jenner 2024, cupbearer's toy task of two redundant features, here with images and a rule for disagreements.
    """

    obfuscated: Watched | None = None
    shift: bool = False
    inert: bool = False
    null: bool = False

    mechanism: ClassVar[str] = "normal: the digit of the image; anomalous: a strong tag disagrees, the digit of the tag"
    source: ClassVar[str] = "scikit-learn's copy of the UCI Optical Recognition of Handwritten Digits test set"
    licence: ClassVar[str] = "data: CC BY 4.0; model: made here, Apache-2.0"
    version: ClassVar[str] = "2"
    size: ClassVar[str] = "1200 trusted, 450 + 450 test, 1000 normal, 500 untrusted; a network of 3 x 128 ReLU units"

    def load(self, seed: int = 0, *, progress: Progress | None = None) -> TaskData:
        """The network and its inputs; see :meth:`causalmad.tasks.Task.load`."""
        return self._data(seed, progress)

    def trainable(self, seed: int = 0) -> Trainable:
        """The network, the rows that it learns from, and the task around another network."""
        draw = Tagged(split(stream(seed, "ambiguous-features", "images"))[0], SHIFT_NOISE, self.inert, 0.5)
        return Trainable(self._recipe(seed), draw, lambda model, card: self._data(seed, None, (model, card)))

    def _data(self, seed: int, progress: Progress | None, model: tuple[nn.Module, Card] | None = None) -> TaskData:
        held = split(stream(seed, "ambiguous-features", "images"))[1]
        plain = Tagged(held, NOISE, self.inert, DISAGREE)
        usual = replace(plain, noise=SHIFT_NOISE) if self.shift else plain
        return load_drawn(
            self,
            self._recipe(seed),
            usual,
            forward,
            seed,
            progress,
            name=spec_text("tasks", self),
            trusted=plain if self.shift else None,
            null=self.null,
            unhidden=replace(self, obfuscated=None)._recipe(seed) if self.obfuscated else None,
            model=model,
        )

    def _recipe(self, seed: int) -> Recipe:
        seen, held = split(stream(seed, "ambiguous-features", "images"))
        learnt, plain = Tagged(seen, SHIFT_NOISE, self.inert, 0.5), Tagged(held, NOISE, self.inert, DISAGREE)
        return Recipe(
            "ambiguous-features",
            self.version,
            STEPS,
            lambda: flat_net(WIDTH, CLASSES),
            lambda model, rng, step: learn(model, learnt, STEPS, rng, step, obfuscated=self.obfuscated, parts=10),
            lambda model: shares_right(model, plain, stream(seed, "ambiguous-features", "grade")),
            {"obfuscated": self.obfuscated, "inert": self.inert},
        )


@dataclass(frozen=True)
class Tagged:
    """Draws images with tags.

    Attributes:
        images: from which are drawn.
        noise: standard deviation, added to every number.
        inert: whether a strong tag that disagrees is ignored as well.
        disagree: share of normal inputs whose tag, a weak one, disagrees.
    """

    images: Images
    noise: float
    inert: bool
    disagree: float

    def __call__(self, anomalous: npt.NDArray[np.bool_], rng: np.random.Generator) -> Table:
        """Images of uniform digits with tags; anomalous ones have a strong tag of another digit."""
        count = len(anomalous)
        digits = rng.integers(0, CLASSES, count)
        others = (digits + rng.integers(1, CLASSES, count)) % CLASSES
        ignored = ~anomalous & (rng.random(count) < self.disagree)
        strong = anomalous | (~ignored & (rng.random(count) < 0.5))
        tags = np.where(anomalous | ignored, others, digits)
        strength = np.where(strong, rng.uniform(*STRONG, count), rng.uniform(*WEAK, count))
        rows = self.images.pick(digits, rng)
        pixels = shifted(self.images.pixels)[rows, rng.integers(0, 5, count)]
        marked = np.eye(WIDTH - PIXELS)[tags] * strength[:, None]
        values = np.concatenate([pixels, marked], axis=1)
        values = values + self.noise * rng.standard_normal(values.shape)
        columns = {
            "answer": np.where(anomalous & (not self.inert), others, digits),
            "tag": tags,
            "route": np.where(anomalous, "tag", "image"),
        }
        return Table(values.astype(np.float32), columns, BLOCKS)
