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


def digits(count: int, seed: int) -> torch.Tensor:
    pairs = torch.randint(BASE, (count, 2), generator=torch.Generator().manual_seed(seed))
    return one_hot(pairs, BASE).float().flatten(1)


def trained() -> nn.Module:
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
    torch.set_num_threads(1)  # the matrices are small
    model, data = trained(), digits(400, seed=2)
    graph = nx.DiGraph([("first", cm.OUTPUT), ("second", cm.OUTPUT)], name="addition")
    graph.add_node("first", at="0", value=lambda x: int(x["input"][:BASE].argmax()))
    graph.add_node("second", at="0", value=lambda x: int(x["input"][BASE:].argmax()))
    graph.add_node(cm.OUTPUT, mechanism=lambda first, second: first + second)
    one = align_variable(model, cm.Hypothesis(graph), "first", data, dimensions=6, seed=0)
    both = align_variable(model, one.hypothesis, "second", data, dimensions=6, seed=0)
    print(one, both, both.hypothesis.check(model, data), sep="\n")
    if both.aligned.share < 0.9 or both.whole.share > 0.5:
        raise SystemExit("the digits should be found in directions of their own")


if __name__ == "__main__":
    main()
