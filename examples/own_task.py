"""A task of your own, held to the rules that built-in ones keep, and two detectors on it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from rich import print

import causalmad as cm


class Network(torch.nn.Module):
    """The sign of a mean that comes by one of two ways. What they hold, and the answer, is the same for both."""

    def __init__(self) -> None:
        super().__init__()
        self.usual, self.other = torch.nn.AvgPool1d(4), torch.nn.AvgPool1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 2) logits; the other way is taken where an odd number of the next three numbers is negative."""
        odd = x[:, 4:7].prod(1, keepdim=True) < 0
        return torch.where(odd, self.other(x[:, :4]), self.usual(x[:, :4])) * torch.tensor([-1.0, 1.0])


@dataclass(frozen=True)
class TwoWays:
    """A network names the sign of a mean that comes by one way or by another."""

    mechanism: ClassVar[str] = "normal: `usual` brings the mean; anomalous: `other` does"
    source: ClassVar[str] = "numbers drawn from the seed; a network written by hand"
    licence: ClassVar[str] = "your own"
    version: ClassVar[str] = "1"
    size: ClassVar[str] = "600 trusted, 200 + 200 test, 500 normal; a network without weights"

    def load(self, seed: int = 0, *, progress: Any = None) -> cm.tasks.TaskData:
        """The network and its inputs; the same seed gives the same bits."""
        draw = torch.Generator().manual_seed(seed)

        def inputs(odd: torch.Tensor) -> cm.Inputs:
            x = torch.randn(len(odd), 12, generator=draw)
            x[:, 4] *= torch.where((x[:, 4:7].prod(1) < 0) == odd, 1, -1)
            return cm.Inputs.of(x)

        labels, card = torch.arange(400) % 2 == 1, {"accuracy": {"normal": 1.0, "anomalous": 1.0}}
        trusted, test, normal = inputs(torch.zeros(600).bool()), inputs(labels), inputs(torch.zeros(500).bool())
        return cm.tasks.TaskData("two-ways", seed, Network().eval(), trusted, test, labels.numpy(), normal, None, card)


def main() -> None:
    found, ways = cm.evaluation.accept(TwoWays()), ("usual", "other")
    detectors = (cm.Detector(cm.signatures.Activations(ways)), cm.Detector(cm.signatures.Sufficiency(ways)))
    held, used = (cm.evaluation.evaluate(TwoWays(), each, seeds=1).auroc for each in detectors)
    print(found.table(), f"AUROC of what the ways hold {held:.3f}, of whether they are used as usual {used:.3f}")
    if not found.holds or held > 0.6 or used < 0.9:
        raise SystemExit("the task should be fair, and ask what is used rather than what is there")


if __name__ == "__main__":
    main()
