"""A claim about a network, from nothing: write it, check it, interchange what it names, and see a wrong one fail.

A small network is trained to compare digits: is a + b at least c? In training, interchange interventions make its first
hidden part carry a + b and nothing else do so (Geiger et al. 2022, arXiv 2112.00826), so that the truth is known.
"""

from __future__ import annotations

import networkx as nx
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import causalmad as cm

BASE, WIDTH = 5, 24


class Comparison(nn.Module):
    """Two parts side by side, and a head that reads both: ``sum`` sees a and b, ``rest`` sees everything."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = nn.Sequential(nn.Linear(2 * BASE, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.rest = nn.Sequential(nn.Linear(3 * BASE, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.head = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 2) logits of "no" and "yes"."""
        return self.head(torch.cat([self.sum(x[:, : 2 * BASE]), self.rest(x)], dim=1))


def total(x: dict[str, Tensor]) -> int:
    """The sum a + b."""
    return int(x["input"][:BASE].argmax() + x["input"][BASE : 2 * BASE].argmax())


def third(x: dict[str, Tensor]) -> int:
    """The digit c."""
    return int(x["input"][2 * BASE :].argmax())


def compare(total: int, third: int) -> int:
    """The class that the network should answer."""
    return int(total >= third + 2)


def claim(name: str, total_at: str, third_at: str) -> cm.Hypothesis:
    """Where a + b is, where c is, and that the output compares them."""
    graph = nx.DiGraph([("total", cm.OUTPUT), ("third", cm.OUTPUT)], name=name)
    graph.add_node("total", at=total_at, value=total)
    graph.add_node("third", at=third_at, value=third)
    graph.add_node(cm.OUTPUT, mechanism=compare)
    return cm.Hypothesis(graph)


def digits(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(count, 3) digits, and the same one-hot."""
    found = torch.randint(BASE, (count, 3), generator=torch.Generator().manual_seed(seed))
    return found, one_hot(found, BASE).float().flatten(1)


def trained() -> nn.Module:
    """The network: right on its own, and right about the other's a + b when ``sum`` comes from another input."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Comparison()
    numbers, x = digits(4000, seed=1)
    adam, draw = torch.optim.Adam(model.parameters(), lr=5e-3), torch.Generator().manual_seed(2)
    for _ in range(400):
        base, source = torch.randint(len(x), (2, 256), generator=draw)
        parts = torch.cat([model.sum(x[source][:, : 2 * BASE]), model.rest(x[base])], dim=1)
        own, wanted = ((numbers[who, :2].sum(1) >= numbers[base, 2] + 2).long() for who in (base, source))
        adam.zero_grad()
        (cross_entropy(model(x[base]), own) + cross_entropy(model.head(parts), wanted)).backward()
        adam.step()
    return model.eval()


def main() -> None:
    """Check a true claim and a wrong one on the same network."""
    torch.set_num_threads(1)  # the matrices are small
    model, (_, x) = trained(), digits(600, seed=3)
    true, wrong = claim("as trained", "sum", "rest"), claim("the wrong way round", "rest", "sum")
    shares, preserved = {}, {}
    for hypothesis in (true, wrong):
        print(hypothesis.check(model, x, seed=0))
        found = cm.interchange_accuracy(model, hypothesis, x, pairs=1000)
        print({name: f"interchange accuracy {each.share:.3f}" for name, each in found.items()})
        shares[hypothesis] = [each.share for each in found.values()]
        preserved[hypothesis] = cm.scrub(model, hypothesis, x, seed=0).recovered
    # A claim with a slip of the pen says what is wrong.
    print(claim("a slip", "summ", "rest").check(model, x))
    if min(shares[true]) < 0.95 or preserved[true] < 0.9 or max(shares[wrong]) > 0.75 or preserved[wrong] > 0.5:
        raise SystemExit("the true claim should hold, and the wrong one should not")


if __name__ == "__main__":
    main()
