"""Where are the digits? Alignment finds the directions that hold a variable, and scrubbing tests what was found.

A small network is trained to add two digits. The claim "the first layer holds the two digits, and the output adds them"
says nothing about where in the layer they are (a random rotation hides them from whoever looks at single neurons):
distributed alignment search finds out.
"""

from __future__ import annotations

import networkx as nx
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

import causalmad as cm
from causalmad.hypotheses import align_variable

BASE = 6


def first(x: dict[str, torch.Tensor]) -> int:
    """The first digit of an input."""
    return int(x["input"][:BASE].argmax())


def second(x: dict[str, torch.Tensor]) -> int:
    """The second digit."""
    return int(x["input"][BASE:].argmax())


def add(first: int, second: int) -> int:
    """What the output should be."""
    return first + second


def digits(count: int, seed: int) -> torch.Tensor:
    """(count, 2 * BASE) pairs of digits, one-hot."""
    draw = torch.Generator().manual_seed(seed)
    return one_hot(torch.randint(BASE, (count, 2), generator=draw), BASE).float().flatten(1)


def trained() -> nn.Module:
    """A network that adds the digits which a fixed rotation hides in its first layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2 * BASE, 24), nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 2 * BASE - 1))
        nn.init.orthogonal_(model[0].weight)
    model[0].requires_grad_(False)
    x = digits(2000, seed=1)
    y = x[:, :BASE].argmax(1) + x[:, BASE:].argmax(1)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        adam.zero_grad()
        cross_entropy(model(x), y).backward()
        adam.step()
    return model.eval()


def main() -> None:
    """Align both digits, then check the claim with what was found."""
    torch.set_num_threads(1)  # the matrices are small
    model, data = trained(), digits(400, seed=2)
    graph = nx.DiGraph(name="addition")
    graph.add_node("first", at="0", value=first)
    graph.add_node("second", at="0", value=second)
    graph.add_edges_from([("first", cm.OUTPUT), ("second", cm.OUTPUT)])
    graph.add_node(cm.OUTPUT, mechanism=add)
    claim = cm.Hypothesis(graph)
    found = align_variable(model, claim, "first", data, dimensions=6, seed=0)
    print(found)
    found = align_variable(model, found.hypothesis, "second", data, dimensions=6, seed=0)
    print(found)
    report = found.hypothesis.check(model, data)
    print(report)
    if found.aligned.share < 0.9 or found.whole.share > 0.5:
        raise SystemExit("the digits should be found in directions of their own")
    again = cm.Hypothesis.from_json(found.hypothesis.to_json(), functions=found.hypothesis)
    if again != found.hypothesis:
        raise SystemExit("a hypothesis should be what was written")


if __name__ == "__main__":
    main()
