"""How far the loss of a task may rise while its network is trained to hide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from causalmad.evaluation.attacks.graphs import GraphModel
from causalmad.inputs import Batch

ROWS, EVERY = 5000, 20  # rows on which the loss is measured, or a few more; steps between two measurements


@dataclass(eq=False)
class Limit:
    """Measures a network's loss on the same rows throughout, and keeps its last state that held the limit.

    Attributes:
        graph: the network.
        rows: (inputs, answers) in batches.
        spare: nats that the loss may rise; None for any number.
        before: the loss at the start, in nats.
        rise: of the loss since then, in the state that is kept.
    """

    graph: GraphModel
    rows: Sequence[tuple[Batch, Tensor]]
    spare: float | None
    before: float = field(init=False)
    rise: float = 0.0

    def __post_init__(self) -> None:
        self.before = self._loss()
        self._kept = self._state()

    def look(self) -> None:
        """Keep the present state if it holds the limit."""
        rise = self._loss() - self.before
        if self.spare is None or rise <= self.spare:
            self.rise, self._kept = rise, self._state()

    def keep(self) -> None:
        """Put back the last state that held the limit."""
        self.graph.module.load_state_dict(self._kept)

    @torch.no_grad()
    def _loss(self) -> float:
        total = sum(
            float(functional.cross_entropy(self.graph.logits(batch), answers, reduction="sum"))
            for batch, answers in self.rows
        )
        return total / sum(len(answers) for _, answers in self.rows)

    def _state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.graph.module.state_dict().items()}
