"""Fully connected networks on rows of numbers, and how they learn a rule from new rows at every step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from causalmad.tasks.drawn import GRADED
from causalmad.tasks.hiding import MahalanobisPenalty, Watched, watched_features
from causalmad.tasks.tables import Draw
from causalmad.tasks.training import one_cycle

HIDDEN, DEPTH, BATCH, LEARNING_RATE = 128, 3, 300, 3e-3
HIDING_FROM, HIDING_GROWS = 0.45, 0.1  # of the steps


def flat_net(inputs: int, classes: int) -> nn.Sequential:
    """An untrained network: three hidden ReLU layers of 128."""
    sizes = [inputs] + [HIDDEN] * DEPTH
    hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(HIDDEN, classes))


def layers_and_logits(model: nn.Module, values: Tensor) -> tuple[list[Tensor], Tensor]:
    """The (n, 128) outputs of the ReLUs, and the (n, classes) logits."""
    layers = []
    for part in model.children():
        values = part(values)
        if isinstance(part, nn.ReLU):
            layers.append(values)
    return layers, values


@torch.no_grad()
def forward(model: nn.Module, values: Tensor) -> tuple[list[Tensor], Tensor]:
    """What :func:`layers_and_logits` gives, without gradients."""
    return layers_and_logits(model, values)


def learn(
    model: nn.Module,
    draw: Draw,
    steps: int,
    rng: np.random.Generator,
    step: Callable[[int], None],
    *,
    share: float = 0.5,
    obfuscated: Watched | None = None,
    parts: int = 8,
) -> None:
    """Trains a network in place on new rows, some of them anomalous.

    Args:
        model: the network.
        draw: makes rows of either kind.
        steps: how many.
        rng: draws.
        step: called after each.
        share: of anomalous rows.
        obfuscated: what the network learns to hide them from, once the rule is learnt.
        parts: into how many equal stretches a row is cut, where it hides from ``signatures``.
    """
    anomalous = np.arange(BATCH) < round(share * BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    set_rate, penalty = one_cycle(optimiser, steps), MahalanobisPenalty()
    for now in range(steps):
        set_rate(now)
        table = draw(anomalous, rng)
        pieces = table.tensor().reshape(BATCH, parts, -1).requires_grad_(obfuscated == "signatures")
        layers, logits = layers_and_logits(model, pieces.flatten(1))
        loss = functional.cross_entropy(logits, table.answer)
        if obfuscated is not None and now >= HIDING_FROM * steps:
            weight = min(1.0, (now / steps - HIDING_FROM) / HIDING_GROWS)
            loss = loss + weight * penalty(
                watched_features(obfuscated, layers, logits, pieces), torch.from_numpy(anomalous)
            )
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step(now + 1)


def shares_right(model: nn.Module, draw: Draw, rng: np.random.Generator) -> dict[str, float]:
    """Share of right answers on new rows, per kind."""
    shares = {}
    for kind, anomalous in (("normal", False), ("anomalous", True)):
        table = draw(np.full(GRADED, anomalous), rng)
        shares[kind] = float((forward(model, table.tensor())[1].argmax(1) == table.answer).double().mean())
    return shares
