"""A claim about a network, from nothing: write it, check it, interchange what it names, and see a wrong one fail."""

from __future__ import annotations

import networkx as nx
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import causalmad as cm

NUMBERS = torch.cartesian_prod(*3 * [torch.arange(5)])  # a, b, c: is a + b at least c + 2?
X = one_hot(NUMBERS, 5).float().flatten(1)


class Comparison(nn.Module):
    """Two parts side by side, and a head that reads both: `sum` sees a and b, `rest` sees everything."""

    def __init__(self) -> None:
        super().__init__()
        self.sum, self.rest = (nn.Sequential(nn.Linear(n, 24), nn.ReLU(), nn.Linear(24, 24)) for n in (10, 15))
        self.head = nn.Sequential(nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 2))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """(batch, 2) logits of "no" and "yes"; `other` are inputs whose a + b is put in place of one's own."""
        return self.head(torch.cat([self.sum((x if other is None else other)[:, :10]), self.rest(x)], dim=1))


def claim(name: str, total_at: str, third_at: str) -> cm.Hypothesis:
    graph = nx.DiGraph([("total", cm.OUTPUT), ("third", cm.OUTPUT)], name=name)
    graph.add_node("total", at=total_at, value=lambda x: int(x["input"][:5].argmax() + x["input"][5:10].argmax()))
    graph.add_node("third", at=third_at, value=lambda x: int(x["input"][10:].argmax()))
    graph.add_node(cm.OUTPUT, mechanism=lambda total, third: int(total >= third + 2))
    return cm.Hypothesis(graph)


def main() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Comparison()
        adam = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(400):  # by interchange, `sum` alone comes to carry a + b (Geiger et al. 2022, arXiv 2112.00826)
            source = torch.randperm(len(X))
            own, wanted = ((NUMBERS[who, :2].sum(1) >= NUMBERS[:, 2] + 2).long() for who in (slice(None), source))
            adam.zero_grad()
            (cross_entropy(model(X), own) + cross_entropy(model(X, X[source]), wanted)).backward()
            adam.step()
    for name, at, holds in (("as trained", ("sum", "rest"), True), ("the wrong way round", ("rest", "sum"), False)):
        report = claim(name, *at).check(model, X, seed=0)
        shares = [each.share for each in cm.interchange_accuracy(model, claim(name, *at), X, pairs=1000).values()]
        print(report, f"  interchange accuracy: {min(shares):.3f} to {max(shares):.3f}", sep="\n")
        if (min(shares) > 0.95, report.preserved.recovered > 0.9) != (holds, holds):
            raise SystemExit("the true claim should hold, and the wrong one should not")
    print(claim("a slip", "summ", "rest").check(model, X))  # a slip of the pen is named, with what is near it


if __name__ == "__main__":
    main()
