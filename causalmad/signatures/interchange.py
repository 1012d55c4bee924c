"""Interchange per input: whose answer comes out when a claimed variable is swapped with a trusted input's?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.hypotheses import Hypothesis
from causalmad.hypotheses.bench import Bench, Held
from causalmad.hypotheses.interchange import each, is_causal_model, log_probability, predictions
from causalmad.hypotheses.pool import NOBODY, Jobs, at_rows, values_of
from causalmad.hypotheses.scrubbing import Scrubber
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.signatures.base import Column, Signatures, State, require_inputs
from causalmad.signatures.claims import claim_groups, require_hypothesis, restore_pool, save_pool
from causalmad.signatures.columns import Reduced, in_parts, join
from causalmad.signatures.draws import answers, changes, missing
from causalmad.signatures.scaled import Scales, sample
from causalmad.signatures.units import Group
from causalmad.sites import Site
from causalmad.targets import Readout, Target, TopMargin, as_target

Rows = npt.NDArray[np.int64]
Patches = dict[Site, Held]


@dataclass(frozen=True)
class Interchange:
    """Whose answer comes out when a claimed variable is swapped with that of trusted inputs, both ways round.

    With mechanisms the hypothesis is a causal model and predicts the answer: columns are the agreement with it and its
    log-probability, with the input as base (it receives) and as source (it gives). Without mechanisms they are the
    change that donors with the same value make (expect none), and whether the donor's answer comes out when the value
    differs.

    Args:
        hypothesis: the claim, with a value on every node.
        draws: trusted partners per input and direction, drawn by (seed, input).
        target: scalar whose change is measured where no change is expected.

    Columns are on a signed-log scale; ``without donors`` is the share of draws that found no partner.

    References:
        Geiger, Lu, Icard and Potts 2021, "Causal abstractions of neural networks", arXiv 2106.02997.
    """

    hypothesis: Hypothesis | None = None
    draws: int = 4
    target: Target | Readout = field(default_factory=TopMargin)

    def __post_init__(self) -> None:
        require_options(self)
        if self.draws < 1:
            raise FitError(f"draws={self.draws}", needed="at least 1")

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedInterchange:
        """Make the trusted inputs the pool of partners, and take the columns' units from some of them.

        Raises:
            HypothesisError: when there is no hypothesis, or it has defects on this model.
        """
        claim = require_hypothesis(self.hypothesis, "interchange")
        require_inputs(trusted)
        scrubber = Scrubber.of(model.plain, claim, trusted, seed)
        raw = FittedInterchange(self, model, scrubber, _pool_logits(scrubber), Scales.unknown())
        return FittedInterchange(self, model, scrubber, raw.pool_logits, Scales.of(raw.reduced(sample(trusted, seed))))

    def restore(self, model: OpenModel, state: State) -> FittedInterchange:
        """The fitted signature that wrote ``state``."""
        claim = require_hypothesis(self.hypothesis, "interchange")
        trusted, seed = restore_pool(state)
        scrubber = Scrubber.of(model.plain, claim, trusted, seed)
        return FittedInterchange(self, model, scrubber, _pool_logits(scrubber), Scales.restore(state))


@dataclass(frozen=True, eq=False)
class FittedInterchange:
    """Interchange interventions on one model with a pool of trusted partners."""

    spec: Interchange
    model: OpenModel
    scrubber: Scrubber
    pool_logits: torch.Tensor
    scales: Scales

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the numbers are."""
        return self.scales.columns

    @property
    def groups(self) -> tuple[Group, ...]:
        """The claimed sites as units, for repairs."""
        return claim_groups(self.scrubber.sites)

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) signatures; two runs for every claim and draw (four without mechanisms)."""
        return self.scales.apply(self.model.inputs(inputs), self.reduced)

    def donors_of(self, inputs: Inputs) -> dict[str, tuple[str, ...]]:
        """What is replaced -> ids of the trusted donors that one input is given."""
        jobs, pool = Jobs.of(inputs, self.spec.draws), self.scrubber.pool
        found = {}
        for claim in self.scrubber.sites:
            if is_causal_model(self.hypothesis):
                drawn = {role: pool.any(jobs, f"{role}/{claim}") for role in ("base", "source")}
            else:
                wanted = at_rows(values_of(self.hypothesis, inputs), np.repeat(np.arange(len(inputs)), self.spec.draws))
                drawn = {
                    "same": pool.matched(jobs, claim, wanted[claim], f"same/{claim}"),
                    "other": pool.mismatched(jobs, claim, wanted[claim], f"other/{claim}"),
                }
            for role, rows in drawn.items():
                found[f"{claim}, {role}"] = tuple(pool.inputs.ids[row] for row in rows if row != NOBODY)
        return found

    def state(self) -> State:
        """The pool, and the columns with their units."""
        return self.scales.save(save_pool(self.scrubber.pool))

    def reduced(self, inputs: Inputs) -> Reduced:
        """The columns in their own units."""
        with self.model.quiet():
            return in_parts(inputs, self.model.batching.stack, self._reduced)

    def _reduced(self, inputs: Inputs) -> Reduced:
        every = [site for sites in self.scrubber.sites.values() for site in sites]
        bench = Bench.of(self.model, inputs, every)
        clean, own = bench.run(np.arange(len(inputs)), read=every)
        owner = np.repeat(np.arange(len(inputs)), self.spec.draws)
        swap = _Swap(
            self, bench, clean, own, Jobs.of(inputs, self.spec.draws), owner, values_of(self.hypothesis, inputs)
        )
        tested = swap.predicted if is_causal_model(self.hypothesis) else swap.unpredicted
        parts, found = [], []
        for claim in self.scrubber.sites:
            reduced, some = tested(claim)
            parts.append(reduced)
            found += some
        return join([*parts, missing(found, len(inputs))])

    @property
    def hypothesis(self) -> Hypothesis:
        """The claim."""
        return self.scrubber.hypothesis


@dataclass(frozen=True, eq=False)
class _Swap:
    """The swaps of some inputs with the pool."""

    fitted: FittedInterchange
    bench: Bench
    clean: torch.Tensor
    own: Mapping[Site, Held]
    jobs: Jobs
    owner: Rows
    values: Mapping[str, tuple[Any, ...]]

    def predicted(self, claim: str) -> tuple[Reduced, list[npt.NDArray[np.bool_]]]:
        """Agreement with the causal model's answer, as base and as source."""
        pool, hypothesis = self.fitted.scrubber.pool, self.fitted.hypothesis
        mine = each(self.values, self.owner)
        everybody = np.ones(len(self.jobs), dtype=bool)
        parts = []
        for role in ("base", "source"):
            rows = pool.any(self.jobs, f"{role}/{claim}")
            theirs = each(pool.values, rows)
            if role == "base":
                logits, expected = self._as_base(claim, rows), predictions(hypothesis, claim, mine, theirs)
            else:
                logits, expected = self._as_source(claim, rows), predictions(hypothesis, claim, theirs, mine)
            parts.append(self._answers(f"{claim} as {role}", claim, logits, expected, everybody))
        return join(parts), [everybody]

    def unpredicted(self, claim: str) -> tuple[Reduced, list[npt.NDArray[np.bool_]]]:
        """Change from partners of the same value, and answers of partners of another value, as base and as source."""
        pool, target = self.fitted.scrubber.pool, as_target(self.fitted.spec.target)
        wanted = at_rows(self.values, self.owner)[claim]
        same = pool.matched(self.jobs, claim, wanted, f"same/{claim}")
        other = pool.mismatched(self.jobs, claim, wanted, f"other/{claim}")
        found, differs = same != NOBODY, other != NOBODY
        same, other = np.maximum(same, 0), np.maximum(other, 0)
        site = self._site(claim)
        their_clean = self.fitted.pool_logits
        mine, theirs = self.clean.argmax(-1).cpu().numpy(), their_clean.argmax(-1).cpu().numpy()
        parts = [
            changes(f"{claim} as base, same", site, self.clean, self._as_base(claim, same), target, found),
            self._answers(f"{claim} as base, other", claim, self._as_base(claim, other), theirs[other], differs),
            self._source_changes(claim, same, found),
            self._answers(f"{claim} as source, other", claim, self._as_source(claim, other), mine[self.owner], differs),
        ]
        return join(parts), [found, differs]

    def _source_changes(self, claim: str, rows: Rows, found: npt.NDArray[np.bool_]) -> Reduced:
        """What this input's value does to partners that have the same: each partner is its own clean run."""
        clean = self.fitted.pool_logits[torch.as_tensor(rows, device=self.clean.device)]
        target = as_target(self.fitted.spec.target)
        logits = self._as_source(claim, rows)
        one = np.ones_like(found)
        single = changes(f"{claim} as source, same", self._site(claim), clean, logits, target, one)
        draws = self.fitted.spec.draws
        values = np.where(found[:, None], single.values, 0.0).reshape(len(self.clean), draws, -1)
        count = np.maximum(found.reshape(-1, draws).sum(1), 1)[:, None]
        keep = [i for i, column in enumerate(single.columns) if not column.name.endswith(" sd")]
        return Reduced(tuple(single.columns[i] for i in keep), (values.sum(1) / count)[:, keep])

    def _as_base(self, claim: str, rows: Rows) -> torch.Tensor:
        patches = {site: self.fitted.scrubber.clean[site].take(rows) for site in self.fitted.scrubber.sites[claim]}
        return self.bench.run(self.owner, patches)[0]

    def _as_source(self, claim: str, rows: Rows) -> torch.Tensor:
        patches = {site: self.own[site].take(self.owner) for site in self.fitted.scrubber.sites[claim]}
        return self.fitted.scrubber.bench.run(rows, patches)[0]

    def _answers(self, name: str, claim: str, logits: torch.Tensor, expected: Rows, found: Any) -> Reduced:
        right = (logits.argmax(-1).cpu().numpy() == expected).astype(float)
        return answers(name, self._site(claim), right, log_probability(logits, expected), found, len(self.clean))

    def _site(self, claim: str) -> str:
        return " ".join(map(str, self.fitted.scrubber.sites[claim]))


def _pool_logits(scrubber: Scrubber) -> torch.Tensor:
    return scrubber.bench.run(np.arange(len(scrubber.pool.inputs)))[0]
