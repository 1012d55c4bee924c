"""Sufficiency and necessity of a circuit, per input and at several sparsities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import numpy as np
import torch

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.hypotheses import OUTPUT, Donors, Hypothesis
from causalmad.hypotheses.bench import Bench, Held
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.signatures.base import Column, Signatures, State
from causalmad.signatures.columns import Reduced, join
from causalmad.signatures.draws import changes
from causalmad.signatures.effects import Resampler
from causalmad.signatures.scaled import Scales, sample
from causalmad.signatures.units import Group, groups
from causalmad.sites import Site
from causalmad.targets import Readout, Target, TopMargin, as_target


@dataclass(frozen=True)
class Sufficiency:
    """How far a trusted circuit is enough for an output, and how far the output needs it.

    Everything but the circuit's sites is taken from trusted donors, while these go on computing from what reaches them
    (sufficiency); and the reverse (necessity), with the circuit cut at several sizes. Score it two-sided (a Mahalanobis
    distance from trusted inputs is): an anomaly may well be explained *better* by the trusted circuit than normal
    inputs are.

    Args:
        circuit: site texts, the most important first; a graph whose nodes have a ``weight`` (and ``at``, where
            their names are no sites), such as ``discover(...).to_networkx()``; or a hypothesis, whose
            sites are taken as one circuit. Without it the heads and MLPs are ranked by the mean effect (KL) of
            resampling each of them on trusted inputs.
        sparsities: shares of all sites that the circuit holds, each rounded up to whole sites.
        donors: trusted donors, the same for all inputs; an input that is itself a donor uses a spare.
        target: scalar whose change is measured.

    Columns are, for both and every size, the mean and sd over donors of the KL divergence (nats) and of the target's
    change, and the share of flipped answers, on a signed-log scale.

    References:
        Resample ablation of everything outside a circuit: Chan et al. 2022, "Causal scrubbing"; Wang et al. 2022,
        arXiv 2211.00593 (faithfulness, completeness).
    """

    circuit: Hypothesis | nx.DiGraph | tuple[str, ...] | None = None
    sparsities: tuple[float, ...] = (0.2, 0.3, 0.5)
    donors: int = 4
    target: Target | Readout = field(default_factory=TopMargin)

    def __post_init__(self) -> None:
        require_options(self)
        if self.donors < 1 or not self.sparsities or not all(0 < share < 1 for share in self.sparsities):
            raise FitError(
                f"sparsities={self.sparsities}, donors={self.donors}", needed="shares in (0, 1), donors >= 1"
            )

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedSufficiency:
        """Draw the donors, rank the sites unless a circuit was given, and take the columns' units.

        Raises:
            FitError: when there is neither a circuit nor a known architecture.
        """
        donors = Donors.draw(trusted, self.donors, seed)
        some = sample(trusted, seed, donors.inputs.digests)
        ranked, sizes = self._ranked(model, donors, some)
        raw = FittedSufficiency.of(self, model, donors, ranked, sizes, Scales.unknown())
        return FittedSufficiency.of(self, model, donors, ranked, sizes, Scales.of(raw.reduced(some)))

    def restore(self, model: OpenModel, state: State) -> FittedSufficiency:
        """The fitted signature that wrote ``state``."""
        fields = {key.removeprefix("donors:"): v for key, v in state.tensors.items() if key.startswith("donors:")}
        donors = Donors.unpack(fields, state.data["donors"])
        # A site with a subspace has no text form that could be read back; it stands in the circuit itself.
        given = {} if self.circuit is None else {str(site): site for site in _given(model, self.circuit)}
        texts = [str(text) for text in state.data["ranked"]]
        ranked = tuple(site for text in texts for site in ((given[text],) if text in given else model.sites(text)))
        sizes = tuple(int(size) for size in state.data["sizes"])
        return FittedSufficiency.of(self, model, donors, ranked, sizes, Scales.restore(state))

    def _ranked(self, model: OpenModel, donors: Donors, some: Inputs) -> tuple[tuple[Site, ...], tuple[int, ...]]:
        """All sites, the most important first, and how many of them each circuit holds."""
        everything = _components(model)
        if self.circuit is None:
            ranked = _by_effect(model, donors, some, self.target)
        else:
            given = _given(model, self.circuit)
            ranked = (*given, *(site for site in everything if not any(_inside(site, whole) for whole in given)))
            if isinstance(self.circuit, Hypothesis):
                return ranked, (len(given),)
        sizes = [min(max(math.ceil(share * len(ranked)), 1), len(ranked) - 1) for share in self.sparsities]
        return ranked, tuple(dict.fromkeys(sizes))


@dataclass(frozen=True, eq=False)
class FittedSufficiency:
    """Sufficiency and necessity on one model.

    Attributes:
        spec: what was fitted.
        model: the opened model.
        donors: the trusted donors.
        ranked: all sites, the most important first.
        sizes: how many of them each circuit holds.
        scales: the columns and their units.
        bench: the model with the donors.
        values: site -> the donors' own values.
    """

    spec: Sufficiency
    model: OpenModel
    donors: Donors
    ranked: tuple[Site, ...]
    sizes: tuple[int, ...]
    scales: Scales
    values: dict[Site, Held]

    @classmethod
    def of(
        cls,
        spec: Sufficiency,
        model: OpenModel,
        donors: Donors,
        ranked: tuple[Site, ...],
        sizes: tuple[int, ...],
        scales: Scales,
    ) -> FittedSufficiency:
        """Ready to run: the donors' values are captured once."""
        bench = Bench.of(model.plain, donors.inputs)
        _, values = bench.run(np.arange(len(donors.inputs)), read=ranked, output=False)
        return cls(spec, model, donors, ranked, sizes, scales, values)

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the numbers are."""
        return self.scales.columns

    @property
    def donor_digests(self) -> tuple[str, ...]:
        """Contents of the donors, which the reference leaves out."""
        return self.donors.inputs.digests

    @property
    def groups(self) -> tuple[Group, ...]:
        """All sites as units, for repairs."""
        return (Group("component", tuple(map(str, self.ranked)), self.ranked),)

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) signatures; two runs for every size and donor."""
        return self.scales.apply(self.model.inputs(inputs), self.reduced)

    def state(self) -> State:
        """The donors, the ranking and the columns with their units."""
        fields, donors = self.donors.pack()
        data = {"donors": donors, "ranked": [str(site) for site in self.ranked], "sizes": list(self.sizes)}
        return self.scales.save(State({f"donors:{key}": value for key, value in fields.items()}, data))

    def reduced(self, inputs: Inputs) -> Reduced:
        """The columns in nats and in the target's unit."""
        bench = Bench.of(self.model, inputs)
        clean, _ = bench.run(np.arange(len(inputs)))
        owner = np.repeat(np.arange(len(inputs)), self.spec.donors)
        rows = self.donors.of(inputs).reshape(-1)
        found = np.ones(len(rows), dtype=bool)
        target = as_target(self.spec.target)
        parts = []
        for size in self.sizes:
            circuit, rest = self.ranked[:size], self.ranked[size:]
            # A part of a component may be in the circuit (a position, a neuron) while the rest of it is not.
            for name, sites, keep in (("sufficiency", rest, circuit), ("necessity", circuit, ())):
                logits, _ = bench.run(owner, {site: self.values[site].take(rows) for site in sites}, keep=keep)
                text = " ".join(map(str, circuit))
                parts.append(changes(f"{name} of {size} of {len(self.ranked)}", text, clean, logits, target, found))
        return join(parts)


def _components(model: OpenModel) -> tuple[Site, ...]:
    if model.architecture is None:
        return ()
    return (*model.sites("heads"), *model.sites("mlps"))


def _inside(site: Site, whole: Site) -> bool:
    """Whether a head or MLP is all covered by a site of the circuit, which may be a module around it."""
    if site.path.startswith(f"{whole.path}."):
        return whole.side == "output" and not (whole.heads or whole.neurons)
    part = whole.position is not None or whole.neurons or whole.subspace is not None
    return site.place == whole.place and not part and set(site.heads) <= set(whole.heads or site.heads)


def _given(model: OpenModel, circuit: Hypothesis | nx.DiGraph | Sequence[str]) -> tuple[Site, ...]:
    if isinstance(circuit, Hypothesis):
        return tuple(dict.fromkeys(site for claim in circuit.claims for site in model.sites(claim.at)))
    if isinstance(circuit, nx.DiGraph):
        # A discovered circuit has its sites beside the names of its nodes, and its ends are no parts of the model.
        nodes = [(node, data) for node, data in circuit.nodes(data=True) if node not in ("input", "logits", OUTPUT)]
        nodes.sort(key=lambda pair: -abs(float(pair[1].get("weight", 0.0))))
        return tuple(dict.fromkeys(site for node, data in nodes for site in model.sites(data.get("at", str(node)))))
    return tuple(dict.fromkeys(site for text in circuit for site in model.sites(text)))


def _by_effect(model: OpenModel, donors: Donors, some: Inputs, target: Target | Readout) -> tuple[Site, ...]:
    """Heads and MLPs by the mean KL (nats) of resampling each on its own, over trusted inputs; largest first."""
    if model.architecture is None:
        raise FitError(
            f"the heads and MLPs of {model.name} are not known",
            tries=["circuit=('path.to.module', ...)", "a GPT-2, GPT-NeoX, Llama, BERT or ViT model"],
        )
    found = groups(model, some, ("heads", "mlps"))
    resampler = Resampler.of(model, donors, as_target(target), found)
    which = torch.as_tensor(donors.of(some))
    total = {site: 0.0 for group in found for site in group.sites}
    for batch in model.batches(some):
        start = resampler.start(batch)
        for group in found:
            effects = resampler.effects(start, which[torch.as_tensor(batch.rows)], group).divergence
            for site, value in zip(group.sites, effects.double().mean(-1).sum(0).tolist(), strict=True):
                total[site] += value
    return tuple(sorted(total, key=lambda site: -total[site]))
