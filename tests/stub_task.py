"""A task that is made in a moment: an MLP that is not trained, and anomalies that lie elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from causalmad.inputs import Inputs
from causalmad.tasks import TaskData


@dataclass(frozen=True)
class Stub:
    """An MLP on four numbers; anomalous inputs are shifted."""

    shift: float = 4.0
    trusted: int = 240

    mechanism: ClassVar[str] = "anomalous: shifted"
    source: ClassVar[str] = "drawn here"
    licence: ClassVar[str] = "Apache-2.0"
    version: ClassVar[str] = "1"
    size: ClassVar[str] = "tiny"

    def load(self, seed: int = 0, *, progress: Callable[[int, int], None] | None = None) -> TaskData:
        draw = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():  # layers draw weights when they are made
            model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        with torch.no_grad():
            for value in model.parameters():
                value.copy_(torch.randn(value.shape, generator=draw))
        if progress is not None:
            progress(1, 1)
        labels = np.arange(60) % 2 == 1
        test = torch.randn(60, 4, generator=draw) + self.shift * torch.from_numpy(labels)[:, None]
        return TaskData(
            f"stub[shift={self.shift:g}]",
            seed,
            model.eval(),
            Inputs.of(torch.randn(self.trusted, 4, generator=draw), blocks={"left": (0, 2), "right": (2, 4)}),
            Inputs.of(test, blocks={"left": (0, 2), "right": (2, 4)}),
            labels,
            Inputs.of(torch.randn(100, 4, generator=draw), blocks={"left": (0, 2), "right": (2, 4)}),
            None,
            {"accuracy": {"normal": 1.0}, "mechanism": self.mechanism},
        )
