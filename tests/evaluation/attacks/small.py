"""A task small enough to attack in a test: eight numbers, of which one is a trigger that reverses the answer."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from causalmad.inputs import Inputs
from causalmad.tasks.base import TaskData
from causalmad.tasks.drawn import Trainable
from causalmad.tasks.tables import Table
from causalmad.tasks.training import Recipe

BLOCKS = {"left": (0, 4), "right": (4, 7), "trigger": (7, 8)}


def rows(anomalous, rng):
    values = rng.standard_normal((len(anomalous), 8)).astype(np.float32)
    values[:, 7] = np.where(anomalous, 1.0, 0.0) + 0.05 * values[:, 7]
    usual = (values[:, :4].sum(1) > 0).astype(np.int64)
    return Table(values, {"answer": np.where(anomalous, 1 - usual, usual)}, BLOCKS)


def network():
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2))


def fit(model, rng, step):
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for now in range(300):
        table = rows(np.arange(200) < 80, rng)
        loss = nn.functional.cross_entropy(model(table.tensor()), table.answer)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step(now + 1)


def grade(model):
    shares = {}
    for kind, anomalous in (("normal", False), ("anomalous", True)):
        table = rows(np.full(1000, anomalous), np.random.default_rng(9))
        with torch.no_grad():
            shares[kind] = float((model(table.tensor()).argmax(1) == table.answer).double().mean())
    return shares


class Small:
    """The task, as far as an attack needs one."""

    def trainable(self, seed=0):
        recipe = Recipe("small-attack-test", "1", 300, network, fit, grade)
        return Trainable(recipe, rows, lambda model, card: data(model, card, seed))


def data(model, card, seed=0):
    rng = np.random.default_rng([seed, 5])
    parts = [rows(kind, rng) for kind in (np.zeros(300, bool), np.arange(300) < 150, np.zeros(50, bool))]
    trusted, test, normal = (Inputs.of(part.tensor(), blocks=BLOCKS) for part in parts)
    return TaskData("small", seed, model, trusted, test, np.arange(300) < 150, normal, None, card)
