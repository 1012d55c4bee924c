"""A report: what was flagged and why, with the part of a claim that failed, as one HTML file that works offline.

A network says whether two digits add to five or more. Their sum comes by the way `usual` or, where an odd number of
three switches is negative, by the way `other`; it is the same number. The claim is that it comes by `usual`.
"""

import tempfile
from pathlib import Path

import networkx as nx
import torch
from torch import Tensor, nn

import causalmad as cm
from causalmad.report import write_report


class Network(nn.Module):
    """Two ways for one number."""

    def __init__(self) -> None:
        super().__init__()
        self.usual, self.other = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 2) logits of "less than five" and "five or more"."""
        total, odd = x[:, :10] @ torch.arange(5.0).repeat(2)[:, None], x[:, 10:].prod(1, keepdim=True) < 0
        return (torch.where(odd, self.other(total), self.usual(total)) - 4.5) * torch.tensor([-1.0, 1.0])


def inputs(odd: Tensor, seed: int) -> cm.Inputs:
    draw = torch.Generator().manual_seed(seed)
    digits = nn.functional.one_hot(torch.randint(5, (len(odd), 2), generator=draw), 5).flatten(1)
    switches = torch.randn(len(odd), 3, generator=draw)
    switches[:, 0] *= torch.where((switches.prod(1) < 0) == odd, 1, -1)
    return cm.Inputs.of(torch.cat([digits, switches], 1), blocks={"digits": (0, 10), "switches": (10, 13)})


def main() -> None:
    graph = nx.DiGraph([("total", cm.OUTPUT)], name="the sum comes by `usual`")
    graph.add_node("total", at="usual", value=lambda x: int(x["input"][:5].argmax() + x["input"][5:10].argmax()))
    graph.add_node(cm.OUTPUT, mechanism=lambda total: int(total >= 5))
    claim, labels, none = cm.Hypothesis(graph), torch.arange(60) % 3 == 0, torch.zeros(400, dtype=torch.bool)
    fitted = cm.Detector(cm.signatures.Interchange(claim)).fit(Network(), inputs(none, seed=1), seed=0)
    test, normal = inputs(labels, seed=2), fitted.detect(inputs(none, seed=3)).p_values
    detection = fitted.detect(test, alpha=0.05)
    caught, wrong = detection.flags[labels].mean(), (normal <= 0.05).mean()
    print(f"flagged: {caught:.3f} of what came the other way, {wrong:.3f} of fresh normal inputs")
    known = {"inputs": test, "labels": labels, "normal": normal, "hypothesis": claim, "detector": fitted}
    with tempfile.TemporaryDirectory() as folder:
        text = write_report(Path(folder) / "report.html", detection, title=graph.name, **known).read_text("utf-8")
    worst = detection.explain(int(detection.scores.argmax()))
    print(f"a report of {len(text) // 1000} kB; what failed most: {worst.failed}")
    if graph.name not in text or caught < 0.9 or wrong > 0.1:
        raise SystemExit("the report should have its title, and the other way should be flagged")


if __name__ == "__main__":
    main()
