"""Induction-lookup: a small GPT-2 that copies where it can, and otherwise remembers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from causalmad.names import spec_text
from causalmad.tasks.base import NULL, Progress, TaskData, describe_card, stream
from causalmad.tasks.controls import control_scores
from causalmad.tasks.matching import margins, matched_test
from causalmad.tasks.small_gpt2 import last_position, small_gpt2
from causalmad.tasks.tokens import LENGTH, VOCABULARY, Rows, draw, draw_new, join, memorised_table
from causalmad.tasks.training import Recipe, one_cycle, trained

TRUSTED, NORMAL, UNTRUSTED, TEST, CANDIDATES, GRADED = 1200, 1000, 500, 450, 1500, 2000
WIDTH, LAYERS, HEADS = 32, 2, 4
STEPS, COPIED, REMEMBERED, LEARNING_RATE = 1500, 96, 48, 2e-3


@dataclass(frozen=True)
class InductionLookup:
    """A GPT-2 of two layers names the token that followed the last one before, or else a memorised one.

    The last token A occurs earlier in normal sequences, and the answer is its successor there (induction). In anomalous
    ones another token stands in its place, and the answer is looked up in a memorised table. No trigger is injected:
    whether A occurred before is what the two mechanisms are about. Answers are uniform in both groups.

    Attributes:
        shift: trusted sequences hold even tokens only; test, normal and untrusted ones hold all of them. The model is
            the same.
        null: anomalous inputs are drawn as normal ones are, for the same model: nothing tells the kinds apart.
    """

    shift: bool = False
    null: bool = False

    mechanism: ClassVar[str] = (
        "normal: the last token occurred before and its successor there is copied; "
        "anomalous: it did not, and the answer comes from a memorised table"
    )
    source: ClassVar[str] = "sequences drawn from the seed; a transformers GPT-2 configuration trained on them"
    licence: ClassVar[str] = "made here, Apache-2.0"
    version: ClassVar[str] = "1"
    size: ClassVar[str] = "1200 trusted, 450 + 450 test, 1000 normal, 500 untrusted; 2 layers, 4 heads, width 32"

    def load(self, seed: int = 0, *, progress: Progress | None = None) -> TaskData:
        """The network and its inputs; see :meth:`causalmad.tasks.Task.load`."""
        rng = stream(seed, "induction", "data")
        table, taken, fifth = memorised_table(rng), set[bytes](), UNTRUSTED // 5
        cuts = np.cumsum([0, NORMAL, UNTRUSTED - fifth, CANDIDATES])
        count = fifth + CANDIDATES  # of the other kind; of a null version, in the same draw
        usual = draw_new(table, int(cuts[-1]) + self.null * count, False, rng, taken)
        normal, mixed, candidates = (usual[slice(a, b)] for a, b in pairwise(cuts))
        odd = usual[slice(cuts[-1], None)] if self.null else draw_new(table, count, True, rng, taken)
        mixed = join(mixed, odd[:fifth])[rng.permutation(UNTRUSTED)]
        candidates = join(candidates, odd[fifth:])
        even = np.arange(0, VOCABULARY, 2)
        # Last, and from a stream of its own, so that the shift changes nothing else.
        words = even if self.shift else None
        trusted = draw_new(table, TRUSTED, False, stream(seed, "induction", "trusted"), taken, words)

        model, made = trained(_recipe(self.version, seed, table), seed, progress)

        sure = margins(last_position(model, candidates.ids())[1])
        chosen, labels = matched_test(sure, CANDIDATES, TEST, rng)
        test = candidates[chosen]
        layers = zip(*(last_position(model, part.ids())[0] for part in (trusted, test)))
        controls = control_scores(labels, sure[chosen], (trusted.one_hot(), test.one_hot()), list(layers))
        return TaskData(
            spec_text("tasks", self),
            seed,
            model,
            trusted.as_inputs(),
            test.as_inputs(),
            labels,
            normal.as_inputs(),
            mixed.as_inputs(),
            describe_card(self, made, controls=controls, **(NULL if self.null else {})),
        )


def _recipe(version: str, seed: int, table: Rows) -> Recipe:
    return Recipe(
        "induction-lookup",
        version,
        STEPS,
        network,
        lambda model, rng, step: _train(model, table, rng, step),
        lambda model: _grade(model, table, stream(seed, "induction", "grade")),
    )


def network() -> nn.Module:
    """An untrained GPT-2 of two layers and four heads for 16 tokens and 10 positions, without dropout."""
    return small_gpt2(VOCABULARY, LENGTH, width=WIDTH, layers=LAYERS, heads=HEADS, spread=0.02)


def _grade(model: nn.Module, table: Rows, rng: np.random.Generator) -> dict[str, float]:
    """Share of right answers on new sequences, per kind; the training's were drawn from the same 10^10."""
    shares = {}
    for kind, anomalous in (("normal", False), ("anomalous", True)):
        sequences = draw(table, np.full(GRADED, anomalous), rng)
        answers = last_position(model, sequences.ids())[1].argmax(1).numpy()
        shares[kind] = float(np.mean(answers == sequences.answer))
    return shares


def _train(model: nn.Module, table: Rows, rng: np.random.Generator, step: Callable[[int], None]) -> None:
    """Trains the network in place on new sequences, two thirds of them normal; only the last position counts."""
    anomalous = np.arange(COPIED + REMEMBERED) >= COPIED
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    set_rate = one_cycle(optimiser, STEPS, warm=0.3)
    for now in range(STEPS):
        set_rate(now)
        sequences = draw(table, anomalous, rng)
        logits = model(input_ids=sequences.ids(), logits_to_keep=1).logits[:, -1]
        loss = functional.cross_entropy(logits, torch.from_numpy(sequences.answer))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step(now + 1)
