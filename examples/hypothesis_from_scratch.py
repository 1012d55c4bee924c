"""A claim about a network, from nothing: write it, check it, interchange what it names, and see a wrong one fail.

A small network is trained to compare digits: is a + b at least c? In training, interchange interventions make its first
hidden part carry a + b and nothing else do so (Geiger et al. 2022, arXiv 2112.00826), so that the truth is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import causalmad as cm
from causalmad.hypotheses import interchange_accuracy, scrub

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


def digit(x: Mapping[str, Any], place: int) -> int:
    """One of the three digits of an input."""
    return int(x["input"][place * BASE : (place + 1) * BASE].argmax())


def total(x: Mapping[str, Any]) -> int:
    """The sum a + b."""
    return digit(x, 0) + digit(x, 1)


def third(x: Mapping[str, Any]) -> int:
    """The digit c."""
    return digit(x, 2)


def compare(total: int, third: int) -> int:
    """The class that the network should answer."""
    return int(total >= third + 2)


def claim(name: str, total_at: str, third_at: str) -> cm.Hypothesis:
    """Where a + b is, where c is, and that the output compares them."""
    graph = nx.DiGraph(name=name)
    graph.add_node("total", at=total_at, value=total)
    graph.add_node("third", at=third_at, value=third)
    graph.add_node(cm.OUTPUT, mechanism=compare)
    graph.add_edges_from([("total", cm.OUTPUT), ("third", cm.OUTPUT)])
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
    adam = torch.optim.Adam(model.parameters(), lr=5e-3)
    draw = torch.Generator().manual_seed(2)
    for _ in range(400):
        base, source = torch.randint(len(x), (2, 256), generator=draw)
        parts = torch.cat([model.sum(x[source][:, : 2 * BASE]), model.rest(x[base])], dim=1)
        wanted = (numbers[source, :2].sum(1) >= numbers[base, 2] + 2).long()
        own = (numbers[base, :2].sum(1) >= numbers[base, 2] + 2).long()
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
        report = hypothesis.check(model, x, seed=0)
        print(report)
        preserved[hypothesis.name] = scrub(model, hypothesis, x, seed=0).recovered
        for name, found in interchange_accuracy(model, hypothesis, x, pairs=1000).items():
            low, high = found.interval
            print(f"  {name}: interchange accuracy {found.share:.3f} ({low:.3f} to {high:.3f})")
            shares[hypothesis.name, name] = found.share
    # A claim with a slip of the pen says what is wrong, all of it at once.
    slips = claim("slips", "summ", "rest").to_networkx()
    slips.nodes["third"]["value"] = lambda x: x["c"]
    report = cm.Hypothesis(slips).check(model, x)
    print(report)
    if min(shares["as trained", name] for name in ("total", "third")) < 0.95 or preserved["as trained"] < 0.9:
        raise SystemExit("the true claim should hold")
    if max(shares["the wrong way round", name] for name in ("total", "third")) > 0.75:
        raise SystemExit("the wrong claim should not")
    if preserved["the wrong way round"] > 0.5 or len(report.problems) != 2:
        raise SystemExit("scrubbing and the check should say what is wrong")


if __name__ == "__main__":
    main()
