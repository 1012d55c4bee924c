"""AtP*: attribution patching that sees through saturated attention and through effects that cancel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.models.attention import Attended, AttentionLayer, attending
from causalmad.signatures.attention_effects import (
    double_scores,
    key_changes,
    query_changes,
    through_pattern,
    through_weight,
)
from causalmad.signatures.attributions import require_finite
from causalmad.signatures.base import Column, Signatures, State, require_inputs, signatures
from causalmad.signatures.baselines import Baseline
from causalmad.signatures.columns import Reduced, by_place, join, signed_log
from causalmad.signatures.floors import with_floors
from causalmad.signatures.scaled import Scales, sample
from causalmad.sites import Place
from causalmad.targets import Divergence, Readout, Target, TopMargin, as_target

_KINDS = ("queries", "keys", "values", "mlps")
# (kind, layer) -> (batch, positions, nodes) effect of every node.
Effects: TypeAlias = dict[tuple[str, int], Tensor]


@dataclass(frozen=True)
class AtpStar:
    """What each head's queries, keys and values and each MLP contribute, to first order in the pattern, and by layer.

    A node is one head's query, key or value (after rotation; of a group where heads share them) or one MLP's output, at
    one token. Its effect is the target of the clean run minus that of a run in which it alone is at the baseline:
    gradient times distance for values and MLPs; for queries and keys, the exact change of the attention weights times
    the gradient with respect to them (the QK fix), since the slope of a saturated softmax says nothing.

    Dropping layer k (GradDrop) takes the gradient once more with nothing flowing back through what layer k adds to the
    residual stream. Effects that cancel in the clean gradient do not cancel in all of these.

    Args:
        target: the scalar that is attributed, by default the margin of the model's own answer.
        baseline: the trusted ``mean``, or ``donors`` (effects averaged over trusted inputs, aligned at the last token;
            an input that is itself a donor uses a spare).
        donors: how many donors, for ``baseline="donors"``.
        drop: GradDrop, with one more forward and backward pass for every layer but the first.
        normalise: divide by the sum of absolute effects, and keep its logarithm as a column of its own.
        log: signed logarithm of the columns, log(1 + |x| / s) with s the trusted median size.

    Columns are, for every head (or MLP) and kind of node, over its tokens, in units of the target: the sum, the sum of
    absolute values, and with ``drop`` the sum of the AtP* estimates, (1 / (L - 1)) sum over the L dropped layers of the
    absolute effect (a node's own layer gives 0). For every kind, layer and later layer k, ``through``: what of the
    layer's summed effect goes through layer k, which is the effect minus that with k dropped.

    References:
        Kramár, Lieberum, Shah, Nanda 2024, "AtP*: An efficient and scalable method for localizing LLM behaviour to
        components", arXiv 2403.00745.
    """

    target: Target | Readout = field(default_factory=TopMargin)
    baseline: Literal["mean", "donors"] = "mean"
    donors: int = 4
    drop: bool = True
    normalise: bool = True
    log: bool = True

    def __post_init__(self) -> None:
        require_options(self)
        if self.baseline not in ("mean", "donors"):
            raise FitError(f"baseline={self.baseline!r}", needed="'mean' or 'donors'")
        if self.donors < 1:
            raise FitError(f"donors={self.donors}", needed="at least 1")
        if isinstance(self.target, Divergence):
            raise FitError(
                "the divergence from the clean output has no slope at the clean input", tries=["target=TopMargin()"]
            )

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedAtpStar:
        """Take the baseline and the columns' units from the trusted inputs.

        Raises:
            SiteError: for a model without attention that can be laid open.
            FitError: when the trusted inputs are too few.
        """
        with attending(model) as seen:
            require_inputs(trusted)
            places = dict.fromkeys(_nodes(seen), 1)
            baseline = Baseline.fit(seen.model, trusted, self.baseline, places, donors=self.donors, seed=seed)
        raw = FittedAtpStar(self, model, baseline, Scales.unknown())
        scales = Scales.of(raw.reduced(sample(trusted, seed, raw.donor_digests)))
        return FittedAtpStar(self, model, baseline, with_floors(scales, lambda column: column.block))

    def restore(self, model: OpenModel, state: State) -> FittedAtpStar:
        """The fitted signature that wrote ``state``."""
        tensors = {name: value for name, value in state.tensors.items() if name != "scales"}
        with attending(model) as seen:
            baseline = Baseline.unpack(seen.model, tensors, state.data["donors"], _nodes(seen))
        return FittedAtpStar(self, model, baseline, Scales.restore(state))


@dataclass(frozen=True, eq=False)
class FittedAtpStar:
    """AtP* on one model, with its baseline."""

    spec: AtpStar
    model: OpenModel
    baseline: Baseline
    scales: Scales

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the numbers are."""
        return self.scales.columns

    @property
    def donor_digests(self) -> tuple[str, ...]:
        """Contents of the donors, which the reference leaves out."""
        return self.baseline.donors.inputs.digests if self.baseline.donors else ()

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) effects; one forward and backward pass, and another for every layer but the first with ``drop``."""
        known = self.model.inputs(inputs)
        if not len(known):
            return signatures(known, self.columns, np.empty((0, len(self.columns))))
        values = self.reduced(known).values
        return signatures(known, self.columns, signed_log(values, self.scales.sizes) if self.spec.log else values)

    def state(self) -> State:
        """The baseline, the columns and their units."""
        with attending(self.model) as seen:
            tensors, donors = self.baseline.pack(_nodes(seen))
        return self.scales.save(State(tensors, {"donors": donors}))

    def reduced(self, inputs: Inputs) -> Reduced:
        """The columns in units of the target (or as shares of it)."""
        tables: dict[str, npt.NDArray[np.float64]] = {}
        with attending(self.model) as seen:
            which = None if self.baseline.donors is None else torch.as_tensor(self.baseline.donors.of(inputs))
            for batch in seen.model.batches(inputs):
                chosen = None if which is None else which[torch.as_tensor(batch.rows)].to(batch.main.device)
                for name, part in self._sums(self.effects(seen, batch, chosen), batch).items():
                    table = tables.setdefault(name, np.zeros((len(inputs), part.shape[1])))
                    table[batch.rows] = part.cpu().numpy()
                    require_finite(table[batch.rows], name, batch)
        divisor = np.ones((len(inputs), 1))
        if self.spec.normalise:
            total = np.concatenate([tables[f"{kind} size"] for kind in _KINDS], axis=1).sum(1, keepdims=True)
            divisor = np.where(total > 0, total, 1.0)
        parts = []
        for name, values in tables.items():
            units, sites = _names(seen, name, values.shape[1])
            parts.append(by_place(name, values / divisor, units, sites, ragged=False))
        if self.spec.normalise:
            # With `log` every column becomes a logarithm at the end, this one included.
            norm = divisor if self.spec.log else np.log(divisor)
            parts.append(Reduced((Column("log norm", block="norm"),), norm))
        return join(parts)

    def effects(self, seen: Attended, batch: Batch, which: Tensor | None) -> list[Effects]:
        """The effects of all nodes, and after them those with layer 0, 1, ... dropped, where there is dropping.

        Args:
            seen: the model with its attention laid open.
            batch: the inputs.
            which: (batch, donors) the donors of every input, for a baseline of donors.
        """
        target = as_target(self.spec.target)
        mlps = [site.place for site in seen.model.sites("mlps")]
        read = [place for layer in seen.layers for place in (layer.queries, layer.keys, layer.mask)]
        slopes_at = [(layer.pattern, layer.values, mlp) for layer, mlp in zip(seen.layers, mlps, strict=True)]
        sloped = [place for row in slopes_at for place in row]
        run = seen.model.run(batch, read=[*read, *sloped], sloped=sloped, target=target)
        distances = [
            self._distances(layer, mlp, run.values, batch, which) for layer, mlp in zip(seen.layers, mlps, strict=True)
        ]
        clean: Effects = {}
        for layer, places in enumerate(slopes_at):
            clean |= distances[layer].effects(layer, [run.grads[place] for place in places])
        found = [clean]
        for dropped in range(len(slopes_at) if self.spec.drop and len(slopes_at) > 1 else 0):
            # What comes after a layer sends nothing back through it, so only what comes before it changes.
            effects = {key: torch.zeros_like(v) if key[1] == dropped else v for key, v in clean.items()}
            if dropped:
                before = slopes_at[:dropped]
                grads = seen.model.run(
                    batch,
                    read=[place for row in before for place in row],
                    edits=dict.fromkeys(_writes(seen, dropped), torch.Tensor.detach),
                    target=target,
                ).grads
                for layer, places in enumerate(before):
                    effects |= distances[layer].effects(layer, [grads[place] for place in places])
            found.append(effects)
        return found

    def _distances(
        self, layer: AttentionLayer, mlp: Place, values: Mapping[Place, Tensor], batch: Batch, which: Tensor | None
    ) -> _Distances:
        queries, keys, mask = (values[place] for place in (layer.queries, layer.keys, layer.mask))
        bases = {
            place: self.baseline.each(place, values[place], batch, which)
            for place in (layer.queries, layer.keys, layer.values, mlp)
        }
        return _Distances(
            double_scores(queries, keys, mask),
            query_changes(queries, keys, mask, bases[layer.queries]),
            key_changes(queries, keys, mask, bases[layer.keys]),
            values[layer.values] - torch.stack(bases[layer.values]).mean(0),
            values[mlp] - torch.stack(bases[mlp]).mean(0),
            keys.shape[2],
        )

    def _sums(self, found: Sequence[Effects], batch: Batch) -> dict[str, Tensor]:
        """Statistic -> (batch, units) numbers over the real tokens; padding counts nothing."""

        def over_tokens(value: Tensor) -> Tensor:
            keep = torch.ones(value.shape[:2], dtype=torch.bool) if batch.mask is None else batch.mask
            return torch.where(keep.to(value.device)[..., None], value, 0).sum(1)

        clean, dropped = found[0], found[1:]
        layers = sorted({layer for _, layer in clean})
        tables = {}
        for kind in _KINDS:
            keys = [(kind, layer) for layer in layers]
            tables[f"{kind} sum"] = torch.cat([over_tokens(clean[key]) for key in keys], 1)
            tables[f"{kind} size"] = torch.cat([over_tokens(clean[key].abs()) for key in keys], 1)
            if dropped:
                # A node's own layer gives 0, so that L - 1 of the L terms count.
                mean = {key: sum(each[key].abs() for each in dropped) / (len(layers) - 1) for key in keys}
                tables[f"{kind} drops"] = torch.cat([over_tokens(torch.as_tensor(mean[key])) for key in keys], 1)
                through = [
                    over_tokens(clean[kind, layer] - dropped[later][kind, layer]).sum(1)
                    for layer in layers
                    for later in layers[layer + 1 :]
                ]
                tables[f"{kind} through"] = torch.stack(through, 1)
        return tables


class _Distances(NamedTuple):
    """How far each node of a layer is from the baseline, averaged over donors: effects are linear in the gradient."""

    scores: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    mlp: Tensor
    groups: int

    def effects(self, layer: int, slopes: Sequence[Tensor]) -> Effects:
        """Effects of the nodes, from the gradients at the pattern, the values and the MLP's output."""
        pattern, values, mlp = slopes
        keys = through_weight(self.scores, self.keys, pattern)
        return {
            ("queries", layer): through_pattern(self.queries, pattern),
            # Heads that share a key are changed together.
            ("keys", layer): keys.unflatten(-1, (self.groups, -1)).sum(-1),
            ("values", layer): (self.values.double() * values.double()).sum(-1),
            ("mlps", layer): (self.mlp.double() * mlp.double()).flatten(2).sum(-1, keepdim=True),
        }


def _nodes(seen: Attended) -> tuple[Place, ...]:
    """The places that have a baseline."""
    attention = [place for layer in seen.layers for place in (layer.queries, layer.keys, layer.values)]
    return (*attention, *(site.place for site in seen.model.sites("mlps")))


def _writes(seen: Attended, layer: int) -> tuple[Place, ...]:
    """Where a layer adds to the residual stream."""
    known = seen.model.architecture
    if known is None:
        return ()
    return Place(known.path(layer, known.projection)), Place(known.path(layer, known.mlp))


def _names(seen: Attended, table: str, width: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and sites of a table's units."""
    kind, _, statistic = table.partition(" ")
    layers = range(len(seen.layers))
    if statistic == "through":
        return tuple(f"{layer} {later}" for layer in layers for later in layers[layer + 1 :]), ()
    if kind == "mlps":
        paths = tuple(str(site) for site in seen.model.sites("mlps"))
        return paths, paths
    # Groups of heads that share keys and values are numbered as such; they have no site of their own.
    numbers = range(width // len(layers))
    heads = tuple(str(site) for site in seen.model.sites("heads"))
    sites = heads if len(heads) == width else tuple(layer.path for layer in seen.layers for _ in numbers)
    return tuple(f"{layer.path}.{number}" for layer in seen.layers for number in numbers), sites
