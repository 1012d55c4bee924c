"""The computation of a transformer as a graph: who writes to the residual stream, and who reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from causalmad.errors import HypothesisError, nearest
from causalmad.inputs import Batch
from causalmad.models import OpenModel
from causalmad.models.architectures import Architecture, Wiring
from causalmad.models.offloaded import at_hand
from causalmad.sites import Place, Site

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # relative; rounding of half precision is coarser


@dataclass(frozen=True)
class Slot:
    """Where the entries of one receiver lie in the output of a projection of queries, keys or values."""

    place: Place
    start: int
    stop: int


@dataclass(frozen=True)
class Part:
    """Receivers that read the residual stream at one norm, and the senders that they become.

    Attributes:
        norm: input of the norm, which is the residual stream.
        receivers: columns of its receivers.
        upstream: how many senders it reads: the first so many.
        slots: one per receiver of an attention; empty for MLPs and logits, which have a single one.
        writes: where its senders are: the input of the attention's output projection, or the MLP's output.
        senders: rows of its senders.
    """

    norm: Place
    receivers: range
    upstream: int
    slots: tuple[Slot, ...] = ()
    writes: Place | None = None
    senders: range = range(0)


@dataclass(frozen=True, eq=False)
class Computation:
    """A model as senders and receivers.

    The senders are ``input`` (the residual stream before the first block), every head ``a{layer}.h{head}`` (its slice
    of the output projection, without the bias) and every MLP ``m{layer}``. The receivers are a head's ``a1.h2<q>``,
    ``<k>`` and ``<v>``, MLPs and ``logits``. Where heads share keys and values the receiver is their group's,
    ``a1.g0<k>``. An edge is a sender and a receiver further on: each receiver reads the sum of all that was written.

    Attributes:
        model: the opened model.
        senders: names, in the order in which they are written.
        receivers: names, in the order in which they read.
        parts: the norms, in order.
        source: the residual stream before the first block.
        groups: heads that share keys and values.
    """

    model: OpenModel
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    parts: tuple[Part, ...]
    source: Place
    groups: int

    @classmethod
    def of(cls, model: OpenModel) -> Computation:
        """The graph of a model.

        Raises:
            HypothesisError: when the blocks of its family do not read and write the residual stream in a known way.
        """
        family, wiring = _wired(model)
        first = _width(model, family.path(0, wiring.queries))
        heads, size = family.heads, _size(model, family)
        kept = heads if wiring.layout != "apart" else _width(model, family.path(0, wiring.keys)) // size
        if wiring.layout != "apart" and first != 3 * heads * size:
            raise HypothesisError(f"{model.name}: {first} entries of queries, keys and values for {heads} heads")
        config = getattr(model.module, "config", None)
        beside = bool(wiring.parallel) and bool(getattr(config, wiring.parallel, False))
        senders, receivers, parts = ["input"], list[str](), list[Part]()
        for layer in range(family.layers):
            names, slots = _slots(family, wiring, layer, heads, kept, size)
            norm = Place(family.path(layer, wiring.attention_norm), "input")
            columns = range(len(receivers), len(receivers) + len(names))
            rows = range(len(senders), len(senders) + heads)
            output = Place(family.path(layer, family.projection), "input")
            parts.append(Part(norm, columns, rows.start, slots, output, rows))
            receivers += names
            senders += [f"a{layer}.h{head}" for head in range(heads)]
            norm = Place(family.path(layer, wiring.mlp_norm), "input")
            column, row = len(receivers), len(senders)
            upstream = rows.start if beside else row
            output = Place(family.path(layer, family.mlp))
            parts.append(Part(norm, range(column, column + 1), upstream, (), output, range(row, row + 1)))
            receivers.append(f"m{layer}")
            senders.append(f"m{layer}")
        last = range(len(receivers), len(receivers) + 1)
        parts.append(Part(Place(wiring.final_norm, "input"), last, len(senders)))
        source = Place(family.path(0), "input")
        return cls(model, tuple(senders), (*receivers, "logits"), tuple(parts), source, heads // kept)

    @cached_property
    def allowed(self) -> Tensor:
        """(senders, receivers) bool: which edges there are."""
        table = torch.zeros(len(self.senders), len(self.receivers), dtype=torch.bool)
        for part in self.parts:
            table[: part.upstream, part.receivers.start : part.receivers.stop] = True
        return table

    @cached_property
    def into(self) -> Tensor:
        """(receivers, senders) bool: into whose values what a receiver reads goes."""
        table = torch.zeros(len(self.receivers), len(self.senders), dtype=torch.bool)
        for column, name in enumerate(self.receivers):
            table[column, [self.sender(node) for node in self.heads_of(name)]] = True
        return table

    @cached_property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """Every edge, sender by sender: the order of ``allowed.nonzero()``."""
        return tuple((self.senders[u], self.receivers[r]) for u, r in self.allowed.nonzero().tolist())

    def sender(self, name: str) -> int:
        """Row of a sender.

        Raises:
            HypothesisError: when there is none of that name, with the nearest three.
        """
        if name not in self.senders:
            raise HypothesisError(f"no sender {name!r} in {self.model.name}", tries=nearest(name, self.senders))
        return self.senders.index(name)

    def receiver(self, name: str) -> int:
        """Column of a receiver; ``a1.h2<k>`` means its group's where heads share keys.

        Raises:
            HypothesisError: when there is none of that name, with the nearest three.
        """
        known = self.shared(name)
        if known not in self.receivers:
            raise HypothesisError(f"no receiver {name!r} in {self.model.name}", tries=nearest(name, self.receivers))
        return self.receivers.index(known)

    def shared(self, name: str) -> str:
        """``a1.h2<k>`` as ``a1.g1<k>`` where two heads at a time share keys and values; any other name as it is."""
        layer, dot, rest = name.partition(".h")
        head, _, role = rest.partition("<")
        if self.groups == 1 or not dot or role not in ("k>", "v>") or not head.isdigit():
            return name
        return f"{layer}.g{int(head) // self.groups}<{role}"

    def heads_of(self, receiver: str) -> tuple[str, ...]:
        """The senders whose values a receiver goes into: one head, the heads of a group, an MLP, or none (logits)."""
        layer, dot, group = receiver.partition("<")[0].partition(".g")
        if dot:
            return tuple(f"{layer}.h{int(group) * self.groups + i}" for i in range(self.groups))
        node = receiver.partition("<")[0]
        return (node,) if node in self.senders else ()

    def site(self, sender: str) -> Site:
        """Where in the model a sender's value is."""
        row = self.sender(sender)
        part = next((part for part in self.parts if row in part.senders), None)
        if part is None or part.writes is None:
            return Site(self.source.path, "input")
        site = Site(part.writes.path, part.writes.side)
        return replace(site, heads=(row - part.senders.start,), head_count=len(part.senders)) if part.slots else site

    def written(self, part: Part, value: Tensor, which: Sequence[int] | None = None) -> Tensor:
        """(batch, positions, senders, width) what a part's senders write, from the activation where they are.

        Args:
            part: whose senders.
            value: the activation.
            which: some of them, by number; by default all.
        """
        if not part.slots or part.writes is None:
            return value[:, :, None]
        heads = value.unflatten(-1, (len(part.senders), -1))
        weight = weights(self.model.module.get_submodule(part.writes.path), value).unflatten(0, (len(part.senders), -1))
        if which is not None:
            heads, weight = heads[:, :, list(which)], weight[list(which)]
        return torch.einsum("bphk,hkd->bphd", heads, weight)

    def senders_of(self, values: Mapping[Place, Tensor]) -> Tensor:
        """(batch, positions, senders, width) everything written, from what was read at :attr:`places`."""
        found = [values[self.source][:, :, None]]
        found += [self.written(part, values[part.writes]) for part in self.parts if part.writes is not None]
        return torch.cat(found, dim=2)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """What is read to know what every sender writes."""
        return (self.source, *(part.writes for part in self.parts if part.writes is not None))

    def capture(self, batch: Batch, *, check: bool = False) -> Mapping[Place, Tensor]:
        """Place -> activation at :attr:`places`, for :meth:`senders_of`.

        Args:
            batch: the inputs.
            check: whether to see that the residual stream is their sum at every norm.

        Raises:
            HypothesisError: when it is not: then edges would be patched wrongly, and without a sign of it.
        """
        norms = [part.norm for part in self.parts] if check else []
        values = self.model.run(batch, read=(*self.places, *norms), output=False).values
        if check:
            self._check(self.senders_of(values), values, batch)
        return {place: values[place] for place in self.places}

    def _check(self, found: Tensor, values: Mapping[Place, Tensor], batch: Batch) -> None:
        keep = torch.ones(found.shape[:2], dtype=torch.bool) if batch.mask is None else batch.mask
        sums = found.cumsum(2)
        bias = torch.zeros_like(sums[:, :, 0])
        biases = {0: bias}
        for part in self.parts[:-1]:
            if part.slots and part.writes is not None:
                projection = self.model.module.get_submodule(part.writes.path)
                bias = bias + plain(projection, torch.zeros_like(values[part.writes]))
            biases[part.senders.stop] = bias
        for part in self.parts:
            known = max(stop for stop in biases if stop <= part.upstream)
            stream = values[part.norm]
            gap = (sums[:, :, part.upstream - 1] + biases[known] - stream)[keep].abs().amax()
            if gap > _TOLERANCE.get(stream.dtype, 5e-2) * stream[keep].abs().amax():
                raise HypothesisError(
                    f"the residual stream of {self.model.name} at {part.norm} is not the sum of what heads and MLPs "
                    f"write: it differs by up to {float(gap):.3g}",
                    causes=["norms or scales between a part and the residual stream", "adapters or hooks of your own"],
                    tries=["sites and roles ('heads', 'mlps') in place of edges"],
                )


def plain(part: nn.Module, value: Tensor) -> Tensor:
    """A module's own computation, past any hook or replaced ``forward``: it may be running already."""
    with at_hand(part):
        result: Tensor = type(part).forward(part, value)
    return result


def weights(projection: nn.Module, like: Tensor) -> Tensor:
    """(in, out) matrix of a linear map, whatever it is made of."""
    with at_hand(projection):
        if type(projection) is nn.Linear:
            return projection.weight.T
        if type(projection).__name__ == "Conv1D" and isinstance(projection.weight, Tensor):
            return projection.weight
    with torch.no_grad():
        unit = torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
        return plain(projection, unit) - plain(projection, torch.zeros_like(unit[:1]))


def _wired(model: OpenModel) -> tuple[Architecture, Wiring]:
    family = model.architecture
    names = {name for name, _ in model.module.named_modules()}
    if family is None or family.wiring is None or not family.heads:
        raise HypothesisError(
            f"the edges of {model.name} are not known",
            needed="GPT-2, GPT-NeoX, or Llama and its relatives, with a head for logits",
            causes=["norms after the residual stream, as in BERT", "a model of no known family"],
            tries=["sites and roles ('heads', 'mlps') in place of edges"],
        )
    wiring = family.wiring
    if wiring.post_norm and family.path(0, wiring.post_norm) in names:
        raise HypothesisError(
            f"{model.name} norms what its parts write ({wiring.post_norm}), so the residual stream is not their sum",
            needed="a model that norms only what its parts read",
            tries=["sites and roles ('heads', 'mlps') in place of edges"],
        )
    inside = (wiring.attention_norm, wiring.mlp_norm, wiring.queries, wiring.keys, wiring.values)
    missing = [path for path in (wiring.final_norm, *(family.path(0, part) for part in inside)) if path not in names]
    if missing:
        raise HypothesisError(
            f"{model.name} has no {missing[0]!r}, which models of the {family.name} family have",
            tries=nearest(missing[0], names),
        )
    return family, wiring


def _slots(
    family: Architecture, wiring: Wiring, layer: int, heads: int, kept: int, size: int
) -> tuple[list[str], tuple[Slot, ...]]:
    """Receivers of an attention: queries of every head, then keys and values of every head or group."""
    kind = "h" if kept == heads else "g"
    counts = (("q", "h", heads, wiring.queries), ("k", kind, kept, wiring.keys), ("v", kind, kept, wiring.values))
    names, slots = [], []
    for number, (role, prefix, count, path) in enumerate(counts):
        for head in range(count):
            first = {"apart": head, "stacked": number * heads + head, "interleaved": 3 * head + number}[wiring.layout]
            slots.append(Slot(Place(family.path(layer, path)), first * size, (first + 1) * size))
            names.append(f"a{layer}.{prefix}{head}<{role}>")
    return names, tuple(slots)


def _size(model: OpenModel, family: Architecture) -> int:
    """Entries of one head."""
    projection = model.module.get_submodule(family.path(0, family.projection))
    weight = getattr(projection, "weight", None)
    if not isinstance(weight, Tensor):
        raise HypothesisError(f"{family.projection} of {model.name} has no weight", needed="a linear output projection")
    inner = weight.shape[0] if type(projection).__name__ == "Conv1D" else weight.shape[1]
    return int(inner) // family.heads


def _width(model: OpenModel, path: str) -> int:
    """Entries that a projection gives."""
    projection = model.module.get_submodule(path)
    weight = getattr(projection, "weight", None)
    if not isinstance(weight, Tensor):
        raise HypothesisError(f"{path} of {model.name} has no weight", needed="a linear projection")
    return int(weight.shape[1] if type(projection).__name__ == "Conv1D" else weight.shape[0])
