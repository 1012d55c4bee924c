"""Planted-routes: one function, and one of two attention heads that carries its value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from causalmad.tasks.planted import grade
from causalmad.tasks.planting import Exchange, exchanging, head_mask, kept
from causalmad.tasks.small_gpt2 import last_logits, last_position, small_gpt2
from causalmad.tasks.tables import Table, join
from causalmad.tasks.training import Recipe, one_cycle

VALUES, CONTENT, STYLES = 12, 6, 3
LENGTH = STYLES + CONTENT + 1
VOCABULARY = VALUES + CONTENT + 2 * STYLES
WIDTH, LAYERS, HEADS, INNER = 32, 2, 4, 64
PLANTED = "transformer.h.1.attn.c_proj"
ROUTES = {"A": 0, "B": 3}
STEPS, SCAFFOLDED, PAIRS, LEARNING_RATE = 900, 400, 32, 3e-3
SMOOTHING = 0.03  # of the answers, so that all are given with one margin and not with ever larger ones


@dataclass(frozen=True)
class PlantedRoutes:
    """A GPT-2 names the token at which a pointer points; head A brings it, or head B when the style has odd parity.

    A sequence is three style tokens (each one of two), six values and a pointer to one of them. The answer is that
    value, whatever the style: normal and anomalous inputs differ in nothing but the head that carries the answer to
    the last position. Parity of three leaves the means and covariances of the inputs the same. The column ``route``
    says which head acts (``A`` or ``B``), and :meth:`components` where that is.

    References:
        Gupta et al. 2024, "InterpBench", arXiv 2407.14494 (strict interchange-intervention training).
    """

    mechanism: ClassVar[str] = (
        "normal: head 0 of layer 1 carries the answer; anomalous (three style tokens of odd parity): head 3 carries it"
    )
    source: ClassVar[str] = "sequences drawn from the seed; a transformers GPT-2 configuration trained on them"
    licence: ClassVar[str] = "made here, Apache-2.0"
    version: ClassVar[str] = "1"
    size: ClassVar[str] = "1200 trusted, 450 + 450 test, 1000 normal, 500 untrusted; 2 layers, 4 heads, width 32"

    def hypothesis(self) -> Hypothesis:
        """The truth about trusted inputs: head A carries the answer."""
        return _claim("head A carries the answer", self.components()["A"])

    def wrong_hypothesis(self) -> Hypothesis:
        """A claim that is false on trusted inputs: head B carries the answer."""
        return _claim("head B carries the answer", self.components()["B"])

    def components(self) -> dict[str, str]:
        """Route -> the site of the planted component."""
        return {route: f"transformer.h.1.attn#head={head}" for route, head in ROUTES.items()}

    def load(self, seed: int = 0, *, progress: Progress | None = None) -> TaskData:
        """The network and its inputs; see :meth:`causalmad.tasks.Task.load`."""
        hypothesis, truths = self.hypothesis(), planted()
        recipe = Recipe(
            "planted-routes",
            self.version,
            STEPS,
            network,
            _train,
            lambda model: grade(model, draw, last_position, truths, stream(seed, "planted-routes", "grade")),
        )
        card = {"components": self.components()}
        return load_drawn(self, recipe, draw, last_position, seed, progress, hypothesis=hypothesis, card=card)


def pointed_at(row: Mapping[str, Any]) -> int:
    """The value at which the pointer of an input points."""
    tokens = row["input_ids"]
    return int(tokens[STYLES + int(tokens[-1]) - VALUES])


def name_it(answer: int) -> int:
    """The class of the output: the answer itself."""
    return answer


def own_answer(carried: int, **idle: int) -> int:
    """The class of the output, to which idle heads contribute nothing."""
    return carried


def planted() -> dict[str, Hypothesis]:
    """Kind -> what was planted for it: one head of layer 1 carries the answer, and the others contribute nothing."""
    truths = {}
    for kind, route in (("normal", "A"), ("anomalous", "B")):
        graph = nx.DiGraph(name=f"{kind} inputs")
        for head in range(HEADS):
            name = "carried" if head == ROUTES[route] else f"idle{head}"
            graph.add_node(name, at=f"transformer.h.1.attn#head={head}@-1", value=pointed_at)
            graph.add_edge(name, OUTPUT)
        graph.add_node(OUTPUT, mechanism=own_answer)
        truths[kind] = Hypothesis(graph)
    return truths


def _claim(name: str, site: str) -> Hypothesis:
    graph = nx.DiGraph(name=name)
    graph.add_node("answer", at=f"{site}@-1", value=pointed_at)
    graph.add_node(OUTPUT, mechanism=name_it)
    graph.add_edge("answer", OUTPUT)
    return Hypothesis(graph)


def network() -> nn.Module:
    """An untrained GPT-2 of two layers and four heads for 24 tokens and 10 positions."""
    return small_gpt2(VOCABULARY, LENGTH, width=WIDTH, layers=LAYERS, heads=HEADS, inner=INNER)


def draw(anomalous: npt.NDArray[np.bool_], rng: np.random.Generator) -> Table:
    """Sequences of even or (anomalous) odd style."""
    count = len(anomalous)
    bits = rng.integers(0, 2, (count, STYLES))
    bits[:, -1] = (bits[:, :-1].sum(1) + anomalous) % 2
    content, pointer = rng.integers(0, VALUES, (count, CONTENT)), rng.integers(0, CONTENT, count)
    styles = VALUES + CONTENT + 2 * np.arange(STYLES) + bits
    tokens = np.concatenate([styles, content, VALUES + pointer[:, None]], axis=1)
    answer = content[np.arange(count), pointer]
    return Table(tokens, {"answer": answer, "route": np.where(anomalous, "B", "A")})


def _train(model: nn.Module, rng: np.random.Generator, step: Callable[[int], None]) -> None:
    """Trains the network in place on three kinds of rows at once, a half of each with odd style.

    The first third is left alone. In the second the head of the own route takes its values from the first, and the
    answer has to be the other sequence's. In the last some other heads and perhaps the MLP take theirs from there, of
    either style, and the answer has to stay as it was (strictness).

    At first the style and its parity are also to be read off the residual stream in fixed directions: a parity gives
    gradients nothing to follow, and without it both heads would carry every answer.
    """
    count = 2 * PAIRS
    anomalous = np.arange(count) >= PAIRS
    own = torch.zeros(count, HEADS, dtype=torch.bool)
    own[torch.arange(count), torch.from_numpy(np.where(anomalous, ROUTES["B"], ROUTES["A"]))] = True
    last = torch.full((3 * count,), LENGTH - 1)
    directions = torch.from_numpy(rng.standard_normal((WIDTH, STYLES + 1), dtype=np.float32))
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    set_rate = one_cycle(optimiser, STEPS, warm=0.3)
    for now in range(STEPS):
        set_rate(now)
        table = join(*(draw(anomalous, rng) for _ in range(3)))
        # Sources of the second third are of the same style, in another order; those of the last are of any style.
        same = np.concatenate([rng.permutation(PAIRS), PAIRS + rng.permutation(PAIRS)])
        source = torch.from_numpy(np.concatenate([np.arange(count), same, rng.permutation(count)]))
        others = torch.from_numpy(rng.random((count, HEADS)) < 0.5) & ~own
        heads = torch.cat([torch.zeros_like(own), own, others])
        mlp = torch.zeros(3 * count, 1, dtype=torch.bool)
        mlp[2 * count :, 0] = torch.from_numpy(rng.random(count) < 0.5)
        wanted = table.answer.clone()
        wanted[count : 2 * count] = wanted[source[count : 2 * count]]
        exchanges = (
            Exchange(PLANTED, "input", source, head_mask(heads, WIDTH // HEADS), last),
            Exchange("transformer.h.1.mlp", "output", source, mlp, last),
        )
        with exchanging(model, exchanges), kept(model.get_submodule("transformer.h.0")) as streams:
            loss = functional.cross_entropy(last_logits(model, table.tensor()), wanted, label_smoothing=SMOOTHING)
        if now < SCAFFOLDED:
            seen = streams[0][:, -1] @ directions
            loss = loss + functional.binary_cross_entropy_with_logits(seen, _style(table))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step(now + 1)


def _style(table: Table) -> Tensor:
    """(n, 4) the three style tokens as bits, and their parity."""
    bits = table.tensor()[:, :STYLES] % 2
    return torch.cat([bits, bits.sum(1, keepdim=True) % 2], dim=1).float()
