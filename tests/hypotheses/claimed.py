"""The same claims twice: as a hypothesis of the library, and written by hand for the twins."""

from __future__ import annotations

import copy
from dataclasses import replace

import networkx as nx
import numpy as np
import torch

import causalmad as cm
from causalmad import Inputs
from causalmad.hypotheses.pool import NOBODY, Jobs
from causalmad.testing.toys import toy
from tests.signatures.families import BLOCKS, PROJECTIONS, WIDTH
from tests.twins.scrubbing import OUTPUT, Datum, Spot, Variable

ATTENTION = {"gpt2": "attn", "llama": "self_attn", "neox": "attention"}
FAMILIES = tuple(BLOCKS)


def half(row):
    """Whether the first token is a large one."""
    return bool(row["input_ids"][0] > 9)


def kind(row):
    """A column; the last fresh inputs have a value that no trusted one has."""
    return int(row["kind"])


def count(row):
    """What a cause's value does not follow from: donors with this value differ in what caused it."""
    return half(row) + kind(row)


def add(early, side):
    return early + side


def combined(early, late):
    """Some class."""
    return (3 * early + 5 * late) % 20


def claimed(name, mechanisms=False):
    """A hypothesis with nested claims, several sites, heads, whole sequences and named positions; and its twin."""
    block = BLOCKS[name]

    def attention(layer):
        return f"{block.format(layer)}.{ATTENTION[name]}"

    def head(layer, which, position=None):
        path = f"{block.format(layer)}.{PROJECTIONS[name]}"
        return Spot(path, "input", range(which * WIDTH, (which + 1) * WIDTH), position)

    mlp = [f"{block.format(layer)}.mlp" for layer in range(2)]
    graph = nx.DiGraph(name=name)
    graph.add_node("early", at=[f"{attention(0)}#head=1", f"{mlp[0]}@S2"], value=half)
    graph.add_node("late", at=f"{mlp[1]}@-1", value=count, **({"mechanism": add} if mechanisms else {}))
    graph.add_node("side", at=f"{attention(1)}#head=0@-1", value=kind)
    # Downstream of a cause of the output there is a claim that is none.
    graph.add_edges_from([("early", "late"), ("side", "late"), ("early", OUTPUT), ("late", OUTPUT)])
    if mechanisms:
        graph.add_node(OUTPUT, mechanism=combined)
    early = Variable((head(0, 1), Spot(mlp[0], position="S2")), half)
    side = Variable((head(1, 0, -1),), kind)
    late = Variable((Spot(mlp[1], position=-1),), count, ("early", "side"), add)
    output = Variable((), None, ("early", "late"), combined)
    return cm.Hypothesis(graph), {"early": early, "side": side, "late": late, OUTPUT: output}


def family(name, trusted=14, fresh=4):
    """A toy of a family with the columns that the claims read, and its model in eval mode for the twin."""
    made = toy(name, trusted, fresh)
    parts = []
    for part, values in ((made.trusted, [0, 1]), (made.fresh, [0, 1, 0, 5])):
        second = np.array([length // 2 for length in part.lengths])
        parts.append(replace(part, columns={"S2": second, "kind": np.resize(values, len(part))}))
    return made.model, *parts, copy.deepcopy(made.model).eval()


def data_of(inputs: Inputs):
    """The inputs one by one, as the twins take them."""
    return [Datum(torch.as_tensor(inputs.main[i]), inputs.row(i)) for i in range(len(inputs))]


class Choice:
    """Donors of one draw of one input, from the library's pool: the draws are no part of the algorithm."""

    def __init__(self, pool, data, digest, draw):
        self.pool, self.data, self.jobs = pool, data, Jobs((digest,), (draw,))

    def any(self, purpose):
        return self.data[self.pool.any(self.jobs, purpose)[0]]

    def matched(self, claim, value, purpose):
        return self._one(self.pool.matched(self.jobs, claim, [value], purpose))

    def mismatched(self, claim, value, purpose):
        return self._one(self.pool.mismatched(self.jobs, claim, [value], purpose))

    def _one(self, rows):
        return None if rows[0] == NOBODY else self.data[rows[0]]


def choices(pool, inputs, draws):
    """For every input the choices of its draws."""
    data = data_of(pool.inputs)
    return [[Choice(pool, data, digest, draw) for draw in range(draws)] for digest in inputs.digests]
