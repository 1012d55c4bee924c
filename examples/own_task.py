"""A task of your own, held to the rules that built-in ones keep, and two detectors on it.

A network names the sign of a sum that comes by the way `usual` or, where an odd number of three other numbers is
negative, by the way `other`. Answers and activations are alike; only which of the two ways is used differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

import causalmad as cm


class Network(nn.Module):
    """Two ways for the same sum of the first four numbers of an input."""

    def __init__(self) -> None:
        super().__init__()
        self.usual, self.other = (nn.utils.skip_init(nn.Linear, 4, 1, bias=False) for _ in range(2))
        for way in (self.usual, self.other):
            nn.init.ones_(way.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 2) logits; the signs of the next three numbers say which way is used."""
        odd = x[:, 4:7].prod(1, keepdim=True) < 0
        margin = torch.where(odd, self.other(x[:, :4]), self.usual(x[:, :4]))
        return torch.cat([-margin, margin], 1)


@dataclass(frozen=True)
class TwoWays:
    """A network names the sign of a sum that comes by one way or by another."""

    mechanism: ClassVar[str] = "normal: `usual` brings the sum; anomalous: `other` does"
    source: ClassVar[str] = "numbers drawn from the seed; a network written by hand"
    licence: ClassVar[str] = "your own"
    version: ClassVar[str] = "1"
    size: ClassVar[str] = "600 trusted, 200 + 200 test, 500 normal; two layers of 4 weights"

    def load(self, seed: int = 0, *, progress: Any = None) -> cm.tasks.TaskData:
        """The network and its inputs; the same seed gives the same bits."""
        draw = torch.Generator().manual_seed(seed)

        def inputs(odd: np.ndarray) -> cm.Inputs:
            x = torch.randn(len(odd), 12, generator=draw)
            x[:, 4] *= torch.where((x[:, 4:7].prod(1) < 0) == torch.from_numpy(odd), 1, -1)
            return cm.Inputs.of(x)

        labels, card = np.arange(400) % 2 == 1, {"accuracy": {"normal": 1.0, "anomalous": 1.0}}
        trusted, test, normal = inputs(np.zeros(600, bool)), inputs(labels), inputs(np.zeros(500, bool))
        return cm.tasks.TaskData("two-ways", seed, Network().eval(), trusted, test, labels, normal, None, card)


def main() -> None:
    """Hold the task to the rules, then see what a detector has to look at."""
    found = cm.evaluation.accept(TwoWays())
    Console(width=100).print(found.table())
    aurocs = {}
    for signature in (cm.signatures.Activations(("usual", "other")), cm.signatures.Sufficiency(("usual", "other"))):
        name = type(signature).__name__
        aurocs[name] = cm.evaluation.evaluate(TwoWays(), cm.Detector(signature), seeds=1).auroc
    print(aurocs)
    if not found.holds or aurocs["Activations"] > 0.6 or aurocs["Sufficiency"] < 0.9:
        raise SystemExit("the task should be fair, and ask what is used rather than what is there")


if __name__ == "__main__":
    main()
