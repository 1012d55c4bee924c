"""The network of the gate tasks: how it is trained, judged, and put before a detector."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from causalmad.names import spec_text
from causalmad.tasks.base import NULL, Progress, Task, TaskData, describe_card, stream
from causalmad.tasks.controls import control_scores
from causalmad.tasks.digits import CLASSES, WIDTH, Images, as_inputs, draw, draw_new, join, shifted, split, with_context
from causalmad.tasks.flat_nets import flat_net, forward, layers_and_logits
from causalmad.tasks.hiding import MahalanobisPenalty
from causalmad.tasks.matching import margins, matched_test
from causalmad.tasks.training import Recipe, one_cycle, trained

TRUSTED, NORMAL, UNTRUSTED, TEST, CANDIDATES, GRADED = 1200, 1000, 500, 450, 2000, 2000
BATCH = 400  # half of it with the gate open
LEARNING_RATE, DECAY, NOISE, MOVED = 3e-3, 0.01, 0.15, 0.3
STEPS, STEPS_OF_PARITY = 2200, 3000
HIDING_FROM, HIDING_FULLY, HIDING_WEIGHT = 1000, 1200, 1.2


def load_gate(
    task: Task, name: str, seed: int, hidden: bool, progress: Progress | None, parity: int = 0, null: bool = False
) -> TaskData:
    """A gate task's model and inputs.

    Args:
        task: whose card is written.
        name: of the task.
        seed: of everything random.
        hidden: whether the anomalies are hidden from Mahalanobis distances on activations during training.
        progress: called after each step of the training.
        parity: over how many bits, where the gate is their parity; 0 where it is open when all three are on.
        null: anomalous inputs are drawn as normal ones are, and the model is the one that there is without this.
    """
    rng = stream(seed, "gate", "data")  # the same images for both gate tasks
    seen, held = split(rng)
    taken: set[tuple[int, int]] = set()
    fifth = UNTRUSTED // 5
    # One draw and one shuffle for all normal inputs: that makes `trusted` and `normal` exchangeable.
    cuts = np.cumsum([0, TRUSTED, NORMAL, UNTRUSTED - fifth, CANDIDATES])
    count = fifth + CANDIDATES  # of the other kind; of a null version, in the same draw
    usual = draw_new(held, int(cuts[-1]) + null * count, False, rng, taken, parity)
    trusted, normal, mixed, candidates = (usual[slice(a, b)] for a, b in pairwise(cuts))
    odd = usual[slice(cuts[-1], None)] if null else draw_new(held, count, True, rng, taken, parity)
    mixed = join(mixed, odd[:fifth])[rng.permutation(UNTRUSTED)]
    candidates = join(candidates, odd[fifth:])

    recipe = Recipe(
        name,
        task.version,
        STEPS_OF_PARITY if parity else STEPS,
        lambda: flat_net(WIDTH, CLASSES),
        lambda model, rng, step: _train(model, seen, rng, step, hidden, parity),
        lambda model: _grade(model, held, stream(seed, "gate", "grade"), parity),
    )
    model, made = trained(recipe, seed, progress)

    sure = margins(forward(model, candidates.table(held))[1])
    chosen, labels = matched_test(sure, CANDIDATES, TEST, rng)
    test = candidates[chosen]
    tables = trusted.table(held), test.table(held)
    layers = zip(*(forward(model, values)[0] for values in tables))
    controls = control_scores(labels, sure[chosen], tables, list(layers))
    card = describe_card(task, made, controls=controls, **(NULL if null else {}))
    inputs = [as_inputs(held, pairs) for pairs in (trusted, test, normal, mixed)]
    return TaskData(spec_text("tasks", task), seed, model, inputs[0], inputs[1], labels, inputs[2], inputs[3], card)


def _grade(model: nn.Module, held: Images, rng: np.random.Generator, parity: int) -> dict[str, float]:
    """Share of right answers on pairs of images that were not trained on, per kind."""
    shares = {}
    for kind, anomalous in (("normal", False), ("anomalous", True)):
        pairs = draw(held, np.full(GRADED, anomalous), rng, parity)
        answers = forward(model, pairs.table(held))[1].argmax(1).numpy()
        shares[kind] = float(np.mean(answers == pairs.answer))
    return shares


def _train(
    model: nn.Module, seen: Images, rng: np.random.Generator, step: Callable[[int], None], hidden: bool, parity: int
) -> None:
    """Trains the network in place on new pairs of moved and noisy images, half of them with the gate open.

    With ``hidden``, the task is learnt first; from step 1000 on the penalty is added, from 1200 on in full. Parity is
    learnt by a curriculum: over one bit in the first quarter, two in the second, and all from then on.
    """
    moved = torch.from_numpy(shifted(seen.pixels))
    anomalous = np.arange(BATCH) >= BATCH // 2
    where = torch.from_numpy(anomalous)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=DECAY)
    steps = STEPS_OF_PARITY if parity else STEPS
    set_rate, penalty = one_cycle(optimiser, steps), MahalanobisPenalty()
    for now in range(steps):
        set_rate(now)
        pairs = draw(seen, anomalous, rng, min(parity, 1 + 4 * now // steps))
        views = [moved[rows, _move(rng)] for rows in (pairs.first, pairs.second)]
        pixels = torch.cat(views, 1)
        pixels = pixels + NOISE * torch.from_numpy(rng.standard_normal(pixels.shape, dtype=np.float32))
        layers, logits = layers_and_logits(model, with_context(pixels, pairs.bits))
        loss = functional.cross_entropy(logits, torch.from_numpy(pairs.answer))
        if hidden and now >= HIDING_FROM:
            share = min(1.0, (now - HIDING_FROM) / (HIDING_FULLY - HIDING_FROM))
            loss = loss + HIDING_WEIGHT * share * penalty(layers, where)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step(now + 1)


def _move(rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """(batch,) which of an image's five views is shown: mostly the one that is not moved."""
    return np.where(rng.random(BATCH) < MOVED, rng.integers(1, 5, BATCH), 0)
