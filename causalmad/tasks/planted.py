"""Tasks whose mechanism was planted: how they are judged."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from causalmad.hypotheses import Hypothesis, interchange_accuracy
from causalmad.tasks.drawn import GRADED, Forward
from causalmad.tasks.tables import Draw


def grade(
    model: nn.Module,
    draw: Draw,
    forward: Forward,
    truths: Mapping[str, Hypothesis],
    rng: np.random.Generator,
) -> dict[str, float]:
    """Share of right answers on new inputs of each kind, plain and after interchanges.

    Args:
        model: to be judged.
        draw: makes inputs of either kind.
        forward: activations and logits of the model.
        truths: ``normal`` and ``anomalous`` -> the causal model that was planted for that kind.
        rng: draws.
    """
    shares = {}
    for kind, truth in truths.items():
        table = draw(np.full(GRADED, kind == "anomalous"), rng)
        answers = forward(model, table.tensor())[1].argmax(1)
        shares[kind] = float((answers == table.answer).double().mean())
        found = interchange_accuracy(model, truth, table.as_inputs(), pairs=GRADED)
        shares |= {f"{kind} interchanges of {claim}": accuracy.share for claim, accuracy in found.items()}
    return shares
