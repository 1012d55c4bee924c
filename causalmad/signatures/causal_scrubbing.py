"""Causal scrubbing per input: does the claim explain how this output came about?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.hypotheses import Hypothesis
from causalmad.hypotheses.bench import Bench
from causalmad.hypotheses.pool import NOBODY, Jobs, at_rows, values_of
from causalmad.hypotheses.scrubbing import Scrubber, Unclaimed
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.signatures.base import Signatures, State, require_inputs
from causalmad.signatures.claims import claim_groups, require_hypothesis, restore_pool, save_pool
from causalmad.signatures.columns import Reduced, in_parts, join
from causalmad.signatures.draws import changes, missing
from causalmad.signatures.scaled import Scales, sample
from causalmad.signatures.units import Group
from causalmad.targets import Readout, Target, TopMargin, as_target


@dataclass(frozen=True)
class CausalScrubbing:
    """How each part of a claim, and the whole of it, explains an output: causal scrubbing around one input.

    For every claimed variable, its activation is replaced by that of trusted donors with the same value (expect no
    change). Besides: everything *but* the claimed sites comes from a random donor (``unclaimed``: expect no change),
    the claimed sites come from a random donor (``claimed``: expect a change), and the ``whole`` output is recomputed
    from donors by the treeified recursion, which agree with the input only where the claim says it matters.

    Args:
        hypothesis: the claim, with a value on every node. A task's own is used where a task is evaluated.
        draws: donors per input and replacement, drawn by (seed, input).
        target: scalar whose change is measured.
        unclaimed: ``shared`` gives all unclaimed inputs of a node one donor, ``separate`` each its own.

    Columns are, per replacement, the mean and sd over draws of the KL divergence (nats) and of the target's change, and
    the share of flipped answers, on a signed-log scale; ``without donors`` is the share of draws that found no donor
    with the wanted value.

    References:
        Chan et al. 2022, "Causal scrubbing: a method for rigorously testing interpretability hypotheses".
    """

    hypothesis: Hypothesis | None = None
    draws: int = 4
    target: Target | Readout = field(default_factory=TopMargin)
    unclaimed: Unclaimed = "shared"

    def __post_init__(self) -> None:
        require_options(self)
        if self.draws < 1 or self.unclaimed not in ("shared", "separate"):
            raise FitError(f"draws={self.draws}, unclaimed={self.unclaimed!r}", needed="draws >= 1, shared or separate")

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedCausalScrubbing:
        """Make the trusted inputs the pool of donors, and take the columns' units from some of them.

        Raises:
            HypothesisError: when there is no hypothesis, or it has defects on this model.
        """
        claim = require_hypothesis(self.hypothesis, "causal-scrubbing")
        require_inputs(trusted)
        scrubber = Scrubber.of(model.plain, claim, trusted, seed, self.unclaimed)
        raw = FittedCausalScrubbing(self, model, scrubber, Scales.unknown())
        return FittedCausalScrubbing(self, model, scrubber, Scales.of(raw.reduced(sample(trusted, seed))))

    def restore(self, model: OpenModel, state: State) -> FittedCausalScrubbing:
        """The fitted signature that wrote ``state``."""
        claim = require_hypothesis(self.hypothesis, "causal-scrubbing")
        trusted, seed = restore_pool(state)
        scrubber = Scrubber.of(model.plain, claim, trusted, seed, self.unclaimed)
        return FittedCausalScrubbing(self, model, scrubber, Scales.restore(state))


@dataclass(frozen=True, eq=False)
class FittedCausalScrubbing:
    """Causal scrubbing of one model with a pool of trusted donors."""

    spec: CausalScrubbing
    model: OpenModel
    scrubber: Scrubber
    scales: Scales

    @property
    def columns(self) -> Any:
        """What the numbers are."""
        return self.scales.columns

    @property
    def groups(self) -> tuple[Group, ...]:
        """The claimed sites as units, for repairs."""
        return claim_groups(self.scrubber.sites)

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) signatures; a run for every replacement, draw and level of the claim."""
        return self.scales.apply(self.model.inputs(inputs), self.reduced)

    def donors_of(self, inputs: Inputs) -> dict[str, tuple[str, ...]]:
        """What is replaced -> ids of the trusted donors that one input is given."""
        jobs, values = Jobs.of(inputs, self.spec.draws), values_of(self.scrubber.hypothesis, inputs)
        pool = self.scrubber.pool
        owner = np.repeat(np.arange(len(inputs)), self.spec.draws)
        found = {}
        for claim in self.scrubber.sites:
            rows = pool.matched(jobs, claim, at_rows(values, owner)[claim], f"claim/{claim}")
            found[f"claim {claim}"] = tuple(pool.inputs.ids[row] for row in rows if row != NOBODY)
        return found

    def state(self) -> State:
        """The pool, and the columns with their units."""
        return self.scales.save(save_pool(self.scrubber.pool))

    def reduced(self, inputs: Inputs) -> Reduced:
        """The columns in nats and in the target's unit."""
        with self.model.quiet():
            return in_parts(inputs, self.model.batching.stack, self._reduced)

    def _reduced(self, inputs: Inputs) -> Reduced:
        target, scrubber = as_target(self.spec.target), self.scrubber
        jobs = Jobs.of(inputs, self.spec.draws)
        owner = np.repeat(np.arange(len(inputs)), self.spec.draws)
        values = at_rows(values_of(scrubber.hypothesis, inputs), owner)
        every = [site for sites in scrubber.sites.values() for site in sites]
        bench = Bench.of(self.model, inputs, every)
        clean, own = bench.run(np.arange(len(inputs)), read=every)
        parts, everyone, donors = [], [], np.ones(len(jobs), dtype=bool)

        for claim, sites in scrubber.sites.items():
            patches, rows = scrubber.matched(jobs, claim, values, f"claim/{claim}")
            logits, _ = bench.run(owner, patches)
            found = rows != NOBODY
            everyone.append(found)
            parts.append(changes(f"claim {claim}", " ".join(map(str, sites)), clean, logits, target, found))

        base = scrubber.pool.any(jobs, "unclaimed")
        logits, _ = scrubber.bench.run(base, {site: own[site].take(owner) for site in every})
        claimed = " ".join(map(str, every))
        parts.append(changes("unclaimed", claimed, clean, logits, target, donors))

        other = scrubber.pool.any(jobs, "claimed")
        logits, _ = bench.run(owner, {site: scrubber.clean[site].take(other) for site in every})
        parts.append(changes("claimed", claimed, clean, logits, target, donors))

        logits, found = scrubber.output(jobs, values)
        parts.append(changes("whole", claimed, clean, torch.as_tensor(logits), target, found))
        return join([*parts, missing([*everyone, found], len(inputs))])
