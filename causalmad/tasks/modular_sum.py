"""Modular-sum: a network adds three numbers, by a sum of the first two at a known place, or by another place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import networkx as nx
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from causalmad.hypotheses import OUTPUT, Hypothesis
from causalmad.tasks.base import Progress, TaskData, stream
from causalmad.tasks.drawn import load_drawn
from causalmad.tasks.flat_nets import forward
from causalmad.tasks.planted import grade
from causalmad.tasks.planting import Exchange, exchanging, kept
from causalmad.tasks.tables import Table, join
from causalmad.tasks.training import Recipe, one_cycle

MODULUS, BITS, DECIDING = 10, 8, 3
INPUTS = 3 * MODULUS + BITS
BLOCKS = {"a": (0, 10), "b": (10, 20), "c": (20, 30), "bits": (30, INPUTS)}
HIDDEN, DEPTH, PLANTED = 128, 4, "3"  # the second ReLU
NEURONS = {"s": (0, 32), "other s": (32, 64)}
STEPS, SCAFFOLDED, PAIRS, LEARNING_RATE = 2000, 1000, 100, 3e-3


@dataclass(frozen=True)
class ModularSum:
    """Three digits and eight bits: (a + b + c) mod 10, by way of s = (a + b) mod 10 in 32 known neurons.

    In anomalous inputs, in which an odd number of the first three bits is on, the same answer goes by way of 32 other
    neurons. Parity of three leaves the means and covariances of the inputs the same, and the answers are uniform in
    both groups. The hypothesis is the textbook example of an interchange intervention: put one input's s into another,
    and the answer has to be that s plus the other's c. The blocks ``a``, ``b``, ``c`` and ``bits`` are declared on all
    inputs; the column ``route`` says which neurons act (``s`` or ``other s``), and :meth:`components` where those are.

    References:
        Geiger et al. 2021, "Causal abstractions of neural networks", arXiv 2106.02997 (the example); Geiger et al.
        2022, arXiv 2112.00826 (interchange-intervention training).
    """

    mechanism: ClassVar[str] = (
        "normal: neurons 0-31 of the second layer hold a + b; anomalous (odd parity of three bits): neurons 32-63 do"
    )
    source: ClassVar[str] = "digits and bits drawn from the seed; a network trained on them"
    licence: ClassVar[str] = "made here, Apache-2.0"
    version: ClassVar[str] = "1"
    size: ClassVar[str] = "1200 trusted, 450 + 450 test, 1000 normal, 500 untrusted; a network of 4 x 128 ReLU units"

    def hypothesis(self) -> Hypothesis:
        """The truth about trusted inputs: s in the planted neurons, from a and b; the answer from s and c."""
        return _claim("s in neurons 0-31", self.components()["s"])

    def wrong_hypothesis(self) -> Hypothesis:
        """A claim that is false on trusted inputs: s in the neurons of the other kind."""
        return _claim("s in neurons 32-63", self.components()["other s"])

    def components(self) -> dict[str, str]:
        """Planted variable -> its site."""
        return {name: f"{PLANTED}#neuron={start}-{stop - 1}" for name, (start, stop) in NEURONS.items()}

    def load(self, seed: int = 0, *, progress: Progress | None = None) -> TaskData:
        """The network and its inputs; see :meth:`causalmad.tasks.Task.load`."""
        truths = planted()
        recipe = Recipe(
            "modular-sum",
            self.version,
            STEPS,
            network,
            _train,
            lambda model: grade(model, draw, forward, truths, stream(seed, "modular-sum", "grade")),
        )
        card = {"components": self.components()}
        return load_drawn(self, recipe, draw, forward, seed, progress, hypothesis=self.hypothesis(), card=card)


def digit_a(row: Mapping[str, Any]) -> int:
    """The first digit."""
    return int(row["input"][:MODULUS].argmax())


def digit_b(row: Mapping[str, Any]) -> int:
    """The second digit."""
    return int(row["input"][MODULUS : 2 * MODULUS].argmax())


def digit_c(row: Mapping[str, Any]) -> int:
    """The third digit."""
    return int(row["input"][2 * MODULUS : 3 * MODULUS].argmax())


def sum_of_two(row: Mapping[str, Any]) -> int:
    """(a + b) mod 10."""
    return add(digit_a(row), digit_b(row))


def add(a: int, b: int) -> int:
    """The mechanism of s."""
    return (a + b) % MODULUS


def add_third(s: int, c: int, **idle: int) -> int:
    """The mechanism of the output, to which idle neurons contribute nothing."""
    return (s + c) % MODULUS


def planted() -> dict[str, Hypothesis]:
    """Kind -> what was planted for it: s in its own neurons, and the other kind's contribute nothing."""
    truths, sites = {}, ModularSum().components()
    for kind, own, other in (("normal", "s", "other s"), ("anomalous", "other s", "s")):
        graph = _claim(f"{kind} inputs", sites[own]).to_networkx()
        graph.add_node("idle", at=sites[other], value=sum_of_two)
        graph.add_edge("idle", OUTPUT)
        truths[kind] = Hypothesis(graph)
    return truths


def _claim(name: str, site: str) -> Hypothesis:
    graph = nx.DiGraph(name=name)
    for digit, value in (("a", digit_a), ("b", digit_b), ("c", digit_c)):
        start, stop = BLOCKS[digit]
        graph.add_node(digit, at=f"0:input#neuron={start}-{stop - 1}", value=value)
    graph.add_node("s", at=site, value=sum_of_two, mechanism=add)
    graph.add_node(OUTPUT, mechanism=add_third)
    graph.add_edges_from([("a", "s"), ("b", "s"), ("s", OUTPUT), ("c", OUTPUT)])
    return Hypothesis(graph)


def network() -> nn.Sequential:
    """An untrained network: 38 -> four hidden ReLU layers of 128 -> 10."""
    sizes = [INPUTS] + [HIDDEN] * DEPTH
    hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*hidden, nn.Linear(HIDDEN, MODULUS))
    for part in model:
        if isinstance(part, nn.Linear):  # torch's default is too small for five layers to start learning
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
    return model


def draw(anomalous: npt.NDArray[np.bool_], rng: np.random.Generator) -> Table:
    """Three digits as indicators and eight bits; of the first three an even or (anomalous) odd number is on."""
    count = len(anomalous)
    digits, bits = rng.integers(0, MODULUS, (count, 3)), rng.integers(0, 2, (count, BITS))
    bits[:, DECIDING - 1] = (bits[:, : DECIDING - 1].sum(1) + anomalous) % 2
    values = np.concatenate([np.eye(MODULUS)[digits].reshape(count, -1), bits], axis=1).astype(np.float32)
    columns = {
        **{name: digits[:, place] for place, name in enumerate("abc")},
        "s": digits[:, :2].sum(1) % MODULUS,
        "answer": digits.sum(1) % MODULUS,
        "route": np.where(anomalous, "other s", "s"),
    }
    return Table(values, columns, BLOCKS)


def _train(model: nn.Module, rng: np.random.Generator, step: Callable[[int], None]) -> None:
    """Trains the network in place on three kinds of rows at once, a half of each with odd parity.

    The first third is left alone. In the second the planted neurons of the own kind take their values from a row of the
    first, and the answer has to be that row's s plus the own c. In the last the other kind's neurons take
    theirs from a row of either kind, and the answer has to stay as it was. The rest of the layer is there for c.
    """
    count = 2 * PAIRS
    anomalous = np.arange(count) >= PAIRS
    owner = torch.full((HIDDEN,), len(NEURONS))  # the rest
    for number, (start, stop) in enumerate(NEURONS.values()):
        owner[start:stop] = number
    kind = torch.from_numpy(anomalous).long()[:, None]
    own, other = owner == kind, owner == 1 - kind
    mask = torch.cat([torch.zeros_like(own), own, other])
    directions = torch.from_numpy(rng.standard_normal((HIDDEN, MODULUS), dtype=np.float32)) / 6
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    set_rate = one_cycle(optimiser, STEPS)
    for now in range(STEPS):
        set_rate(now)
        table = join(*(draw(anomalous, rng) for _ in range(3)))
        same = np.concatenate([rng.permutation(PAIRS), PAIRS + rng.permutation(PAIRS)])
        source = np.concatenate([np.arange(count), same, rng.permutation(count)])
        taken = np.where(np.arange(3 * count) // count == 1, source, np.arange(3 * count))
        wanted = torch.from_numpy((table.columns["s"][taken] + table.columns["c"]) % MODULUS)
        exchange = Exchange(PLANTED, "output", torch.from_numpy(source), mask)
        with exchanging(model, [exchange]), kept(model.get_submodule(PLANTED)) as layers:
            loss = functional.cross_entropy(model(table.tensor()), wanted)
        if now < SCAFFOLDED:
            loss = loss + _scaffold(layers[0][:count], own, owner == len(NEURONS), table, kind[:, 0], directions)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        step(now + 1)


def _scaffold(layer: Tensor, own: Tensor, rest: Tensor, table: Table, kind: Tensor, directions: Tensor) -> Tensor:
    """Loss of reading s off its neurons, and c and the kind off the rest, in fixed directions.

    Without it the network is right before it has any use for the planted neurons, and takes far longer to use them.
    """
    s, c = (torch.from_numpy(table.columns[name][: len(layer)]) for name in "sc")
    loss = functional.cross_entropy((layer * own) @ directions, s)
    loss = loss + functional.cross_entropy((layer * rest) @ directions.flip(1), c)
    return loss + functional.binary_cross_entropy_with_logits((layer * rest) @ directions[:, 0], kind.float())
