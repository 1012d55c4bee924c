"""Path patching: the exact effect of a donor's value that travels along named paths alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from causalmad.errors import HypothesisError
from causalmad.hypotheses.computation import Computation
from causalmad.hypotheses.edges import EdgePatcher, departure
from causalmad.hypotheses.rewiring import CLEAN, CURRENT, DONOR
from causalmad.inputs import Batch
from causalmad.targets import Target, divergence

_ROUNDINGS = 16  # logits that differ by at most this many roundings (of the largest) are the same logits


def path_sources(computation: Computation, text: str) -> Tensor:
    """(senders, receivers) what every receiver reads when a donor's value travels along one path.

    Args:
        computation: the model as a graph.
        text: a sender and what it reaches, for example ``a0.h1->logits``, ``a0.h1->a1.h2<q>``, ``m0->a1.h2->logits``.
            ``->`` is the residual stream alone, all heads and MLPs between frozen; ``~>`` lets the MLPs between pass
            the change on. A head without ``<q>``, ``<k>`` or ``<v>`` is reached at all three. Beyond the last name
            everything follows.

    Raises:
        HypothesisError: on another form, an unknown name (nearest three), or a path that goes back.

    References:
        Goldowsky-Dill et al. 2023, arXiv 2304.05969; ``~>`` as in Wang et al. 2022, arXiv 2211.00593.
    """
    names = re.split(r"\s*(->|~>)\s*", text.strip())
    if len(names) < 3 or not all(names):
        raise HypothesisError(
            f"{text!r} is no path",
            needed="a sender, an arrow and what it reaches",
            tries=["a0.h1->logits", "a0.h1->a1.h2<q>", "m0~>a1.h2->logits"],
        )
    table = torch.zeros(computation.allowed.shape, dtype=torch.int8)
    sender, kind = computation.sender(names[0]), DONOR
    hops = list(zip(names[1::2], names[2::2], strict=True))
    for number, (arrow, name) in enumerate(hops, start=1):
        reached = _receivers(computation, name)
        if not bool(computation.allowed[sender, reached].all()):
            raise HypothesisError(
                f"{text!r}: {name} does not read what {computation.senders[sender]} writes",
                needed="a path from earlier to later in the model",
            )
        _hop(computation, table, sender, reached, kind, arrow == "~>")
        for other in _beside(computation, name):
            _freeze(computation, table, other)
        if number < len(hops):
            sender, kind = _onwards(computation, name), CURRENT
            _freeze(computation, table, sender)
    return table


def _hop(computation: Computation, table: Tensor, sender: int, reached: list[int], kind: int, through: bool) -> None:
    """Let a sender's change reach some receivers, and nothing else."""
    between = _mlps(computation, sender, reached) if through else []
    for row, _ in between:
        _freeze(computation, table, row)
    entries = [column for _, column in between]
    table[sender, [*reached, *entries]] = kind
    for row, _ in between:
        table[row, [*reached, *entries]] = CURRENT


def _freeze(computation: Computation, table: Tensor, sender: int) -> None:
    """Everybody reads a sender's clean value."""
    table[sender, computation.allowed[sender]] = CLEAN


def _mlps(computation: Computation, sender: int, reached: list[int]) -> list[tuple[int, int]]:
    """Row and column of the MLPs that read a sender and are read by the receivers."""
    found = []
    for name in computation.senders:
        if name.startswith("m"):
            row, column = computation.sender(name), computation.receiver(name)
            if computation.allowed[sender, column] and bool(computation.allowed[row, reached].any()):
                found.append((row, column))
    return found


def _receivers(computation: Computation, name: str) -> list[int]:
    if name in computation.senders and name not in computation.receivers and name != "input":
        return [computation.receiver(f"{name}<{role}>") for role in "qkv"]
    return [computation.receiver(name)]


def _beside(computation: Computation, name: str) -> list[int]:
    """The other heads that share keys or values with the one that is named: they are no part of the path."""
    node = name.partition("<")[0]
    if node not in computation.senders:
        return []
    sharing = {head for role in "kv" for head in computation.heads_of(computation.shared(f"{node}<{role}>"))}
    touched = not name.endswith("<q>")
    return [computation.sender(head) for head in sorted(sharing - {node}) if touched and ".h" in node]


def _onwards(computation: Computation, name: str) -> int:
    """The sender that a receiver on the way becomes."""
    node = name.partition("<")[0]
    if node not in computation.senders:
        tries = list(computation.heads_of(name)[:3])
        raise HypothesisError(f"a path cannot go on from {name!r}", needed="a head or an MLP on the way", tries=tries)
    return computation.sender(node)


def path_effects(
    patcher: EdgePatcher, target: Target, batch: Batch, which: Tensor, tables: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """(batch, paths, donors) divergence from the clean output, in nats, and change of the target.

    Args:
        patcher: the model and its donors.
        target: read-out, bound to the clean logits.
        batch: the inputs.
        which: (batch, donors) the donors of every input.
        tables: of every path, its :func:`path_sources`.
    """
    start = patcher.start(batch)
    # In single precision a small divergence is mostly the rounding of its logarithms.
    clean = start.logits.double()
    rounding = _ROUNDINGS * torch.finfo(torch.float32).eps * clean.abs().amax(-1)
    read, reference = target.bind(clean), log_softmax(clean, -1)
    kl, change = torch.zeros(2, len(batch), len(tables), which.shape[1])
    order = sorted(range(len(tables)), key=lambda row: departure(tables[row]))
    for column, donor in enumerate(which.unbind(1)):
        found = patcher.stacked(start, donor, [tables[row] for row in order])
        for row, logits in zip(order, map(torch.Tensor.double, found), strict=True):
            # The same logits from a batch of another shape differ in their last bits: that is no effect.
            same = (logits - clean).abs().amax(-1) <= rounding
            logits = torch.where(same[:, None], clean, logits)
            kl[:, row, column] = divergence(reference, log_softmax(logits, -1)).float().cpu()
            change[:, row, column] = (read(logits) - read(clean)).float().cpu()
    return kl, change
