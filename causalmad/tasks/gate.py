"""The network of the gate tasks: how it is trained, judged, and put before a detector."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from causalmad.inputs import Inputs
from causalmad.tasks.base import Progress, Task, TaskData, describe_card, stream
from causalmad.tasks.controls import control_scores
from causalmad.tasks.digits import CLASSES, WIDTH, Images, Pairs, as_inputs, draw, draw_new, shifted, split, table
from causalmad.tasks.hiding import MahalanobisPenalty
from causalmad.tasks.matching import margins, matched
from causalmad.tasks.training import Recipe, one_cycle, trained

HIDDEN, DEPTH = 128, 3
TRUSTED, NORMAL, UNTRUSTED, TEST, CANDIDATES, GRADED = 1200, 1000, 500, 450, 2000, 2000
BATCH = 400  # half of it with the gate open
LEARNING_RATE, DECAY, NOISE, MOVED = 3e-3, 0.01, 0.15, 0.3
STEPS = 2200
HIDING_FROM, HIDING_FULLY, HIDING_WEIGHT = 1000, 1200, 1.2


def network() -> nn.Sequential:
    """An untrained network: 136 -> three hidden ReLU layers of 128 -> 10."""
    sizes = [WIDTH] + [HIDDEN] * DEPTH
    hidden = [part for a, b in zip(sizes, sizes[1:]) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(HIDDEN, CLASSES))


def hidden_activations(model: nn.Module, values: Tensor) -> tuple[list[Tensor], Tensor]:
    """The (n, 128) outputs of the three ReLUs, and the (n, 10) logits."""
    layers = []
    for part in model.children():
        values = part(values)
        if isinstance(part, nn.ReLU):
            layers.append(values)
    return layers, values


def load_gate(task: Task, name: str, seed: int, hidden: bool, progress: Progress | None) -> TaskData:
    """A gate task's model and inputs.

    Args:
        task: whose card is written.
        name: of the task.
        seed: of everything random.
        hidden: whether the anomalies are hidden from Mahalanobis distances on activations during training.
        progress: called after each step of the training.
    """
    rng = stream(seed, "gate", "data")  # the same inputs for both gate tasks
    seen, held = split(rng)
    taken: set[tuple[int, int]] = set()
    fifth = UNTRUSTED // 5
    # One draw and one shuffle for all normal inputs: that makes `trusted` and `normal` exchangeable.
    sizes = np.cumsum([0, TRUSTED, NORMAL, UNTRUSTED - fifth, CANDIDATES])
    usual = draw_new(held, int(sizes[-1]), False, rng, taken)
    trusted, normal, mixed, candidates = (as_inputs(held, usual[slice(a, b)]) for a, b in zip(sizes, sizes[1:]))
    odd = draw_new(held, fifth + CANDIDATES, True, rng, taken)
    mixed_odd, candidates_odd = as_inputs(held, odd[slice(fifth)]), as_inputs(held, odd[slice(fifth, None)])

    recipe = Recipe(
        name,
        task.version,
        STEPS,
        network,
        lambda model, rng, step: _train(model, seen, rng, step, hidden),
        lambda model: _grade(model, held, stream(seed, "gate", "grade")),
    )
    model, made = trained(recipe, seed, progress)

    both = (_margins(model, candidates), _margins(model, candidates_odd))
    chosen = matched(*both, TEST, rng)
    test, labels, order = joined(candidates[chosen[0]], candidates_odd[chosen[1]], rng)
    untrusted, _, _ = joined(mixed, mixed_odd, rng)
    test_margins = np.concatenate([both[0][chosen[0]], both[1][chosen[1]]])[order]
    with torch.inference_mode():
        layers = [hidden_activations(model, inputs.fields[0])[0] for inputs in (trusted, test)]
    raw = (_array(trusted.fields[0]), _array(test.fields[0]))
    controls = control_scores(labels, test_margins, raw, [(_array(a), _array(b)) for a, b in zip(*layers)])
    card = describe_card(task, made, controls=controls)
    return TaskData(name, seed, model, trusted, test, labels, normal, untrusted, card)
