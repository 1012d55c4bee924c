"""Small GPT-2 models on rows of tokens, and how they learn a rule from new rows at every step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from causalmad.tasks.drawn import GRADED
from causalmad.tasks.hiding import MahalanobisPenalty, Watched, watched_features
from causalmad.tasks.planting import kept
from causalmad.tasks.small_gpt2 import last_position
from causalmad.tasks.tables import Draw
from causalmad.tasks.training import one_cycle

BATCH, LEARNING_RATE = 200, 3e-3
HIDING_FROM, HIDING_GROWS = 0.45, 0.1  # of the steps
SHRINKAGE = 0.005  # about what Ledoit-Wolf gives on these streams; at 0.05 the backdoor is hidden but in part


def learn(
    model: nn.Module,
    draw: Draw,
    steps: int,
    rng: np.random.Generator,
    step: Callable[[int], None],
    *,
    share: float = 0.5,
    smoothing: float = 0.0,
    obfuscated: Watched | None = None,
) -> None:
    """Trains those parameters of a GPT-2 that require gradients, in place; only the last position counts.

    Args:
        model: the network.
        draw: makes rows of either kind.
        steps: how many.
        rng: draws.
        step: called after each.
        share: of anomalous rows.
        smoothing: of the answers, so that all are given with one margin.
        obfuscated: what the network learns to hide the anomalous rows from, once the rule is learnt: the residual
            stream after each block at the last position (``activations``), or the share of each position's embedding in
            the answer (``signatures``).
    """
    if obfuscated == "signatures":
        model.set_attn_implementation("eager")  # type: ignore[operator]  # the others have no second derivative
    anomalous = np.arange(BATCH) < round(share * BATCH)
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    set_rate, penalty = one_cycle(optimiser, steps), MahalanobisPenalty(SHRINKAGE)
    embedding = model.get_submodule("transformer.wte")
    for now in range(steps):
        set_rate(now)
        table = draw(anomalous, rng)
        parts = embedding(table.tensor())
        layers, logits = layers_and_logits(model, parts)
        loss = functional.cross_entropy(logits, table.answer, label_smoothing=smoothing)
        if obfuscated is not None and now >= HIDING_FROM * steps:
            weight = min(1.0, (now / steps - HIDING_FROM) / HIDING_GROWS)
            features = watched_features(obfuscated, layers, logits, parts)
            loss = loss + weight * penalty(features, torch.from_numpy(anomalous))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        step(now + 1)


def layers_and_logits(model: nn.Module, embedded: Tensor) -> tuple[list[Tensor], Tensor]:
    """The (n, width) streams after each block and the (n, tokens) logits at the last position, with gradients.

    Args:
        model: a GPT-2.
        embedded: (n, positions, width) tokens after the embedding.
    """
    with kept(*model.get_submodule("transformer.h").children()) as streams:
        logits = model(inputs_embeds=embedded, logits_to_keep=1).logits[:, -1]
    return [stream[:, -1] for stream in streams], logits


def shares_right(model: nn.Module, draw: Draw, rng: np.random.Generator) -> dict[str, float]:
    """Share of right answers on new rows, per kind."""
    shares = {}
    for kind, anomalous in (("normal", False), ("anomalous", True)):
        table = draw(np.full(GRADED, anomalous), rng)
        answers = last_position(model, table.tensor())[1].argmax(1)
        shares[kind] = float((answers == table.answer).double().mean())
    return shares
