"""Causal scrubbing: recompute an output from donors that agree with the input only where the claim says it matters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import log_softmax, nll_loss

from causalmad.errors import HypothesisError
from causalmad.hypotheses.bench import Bench, Held
from causalmad.hypotheses.graph import OUTPUT, Hypothesis
from causalmad.hypotheses.pool import NOBODY, Jobs, Pool, Rows, Values, at_rows, require_values, values_of
from causalmad.inputs import Inputs
from causalmad.models import OpenModel, open_model
from causalmad.sites import Site
from causalmad.targets import divergence

Unclaimed = Literal["shared", "separate"]


@dataclass(frozen=True, eq=False)
class Scrubber:
    """A hypothesis on one model with a pool of trusted donors.

    The graph G of the definition has the raw input, the claimed sites and the output as its nodes; whatever no claim
    names belongs to the function from a node's parents to its value. So information from a claimed cause may take any
    way to its effect that leads through no other claimed site.

    Attributes:
        hypothesis: the claim; every claim has a value.
        pool: the trusted inputs by their values.
        bench: the model with the same trusted inputs.
        sites: claim -> where it is.
        clean: site -> the trusted inputs' own values there.
        unclaimed: ``shared`` gives all unclaimed inputs of a node the values of one random donor, ``separate`` each its
            own (as the original offers both).
    """

    hypothesis: Hypothesis
    pool: Pool
    bench: Bench
    sites: Mapping[str, tuple[Site, ...]]
    clean: Mapping[Site, Held]
    unclaimed: Unclaimed

    @classmethod
    def of(
        cls, model: OpenModel, hypothesis: Hypothesis, trusted: Inputs, seed: int, unclaimed: Unclaimed = "shared"
    ) -> Scrubber:
        """Ready to scrub: the trusted inputs' values at all claimed sites are captured once.

        Raises:
            HypothesisError: when a claim has no value.
            SiteError: when a site does not exist.
        """
        require_values(hypothesis)
        sites = sites_of(model, hypothesis)
        every = [site for found in sites.values() for site in found]
        bench = Bench.of(model, trusted, every)
        _, clean = bench.run(np.arange(len(trusted)), read=every, output=False)
        return cls(hypothesis, Pool.of(hypothesis, trusted, seed), bench, sites, clean, unclaimed)

    def output(self, jobs: Jobs, values: Values) -> tuple[Tensor, npt.NDArray[np.bool_]]:
        """Logits (jobs, classes) of the fully scrubbed model, and which jobs found donors for every value.

        Args:
            jobs: one for every draw of every input.
            values: claim -> its value on the input of each job.
        """
        patches, found = self._parents(OUTPUT, jobs, values, "whole")
        base = self.pool.any(jobs, "whole/other")
        logits, _ = self.bench.run(base, {**self._frozen(OUTPUT, jobs, base, "whole"), **patches})
        return logits, found

    def matched(self, jobs: Jobs, claim: str, values: Values, purpose: str) -> tuple[dict[Site, Held], Rows]:
        """Values at one claim's sites from donors that agree on it, and who they are."""
        rows = self.pool.matched(jobs, claim, values[claim], purpose)
        return {site: self.clean[site].take(np.maximum(rows, 0)) for site in self.sites[claim]}, rows

    def _value(
        self, claim: str, jobs: Jobs, values: Values, path: str
    ) -> tuple[dict[Site, Held], npt.NDArray[np.bool_]]:
        """A claim's scrubbed values: the recursion of run_scrub, on all jobs at once."""
        clean, rows = self.matched(jobs, claim, values, path)
        found = rows != NOBODY
        if not self.hypothesis.parents(claim):
            return clean, found
        rows = np.maximum(rows, 0)
        patches, below = self._parents(claim, jobs, at_rows(self.pool.values, rows), path)
        base = self.pool.any(jobs, f"{path}/other")
        _, read = self.bench.run(
            base, {**self._frozen(claim, jobs, base, path), **patches}, self.sites[claim], output=False
        )
        return read, found & below

    def _parents(
        self, node: str, jobs: Jobs, values: Values, path: str
    ) -> tuple[dict[Site, Held], npt.NDArray[np.bool_]]:
        patches: dict[Site, Held] = {}
        found = np.ones(len(jobs), dtype=bool)
        for parent in self.hypothesis.parents(node):
            held, some = self._value(parent, jobs, values, f"{path}/{parent}")
            patches |= held
            found &= some
        return patches, found

    def _frozen(self, node: str, jobs: Jobs, base: Rows, path: str) -> dict[Site, Held]:
        """Claimed sites that are no claimed causes of a node keep a random donor's own values: they don't matter."""
        others = [c.name for c in self.hypothesis.claims if c.name not in (node, *self.hypothesis.parents(node))]
        patches: dict[Site, Held] = {}
        for other in others:
            rows = base if self.unclaimed == "shared" else self.pool.any(jobs, f"{path}/other/{other}")
            patches |= {site: self.clean[site].take(rows) for site in self.sites[other]}
        return patches


@dataclass(frozen=True)
class Scrubbed:
    """Expected loss recovered by a hypothesis on a data set.

    Attributes:
        recovered: (loss of random outputs - scrubbed loss) / (loss of random outputs - the model's loss); 1 is perfect.
        interval: 95 % bootstrap interval over inputs.
        losses: mean loss in nats of the ``model``, of the ``scrubbed`` model and of ``random`` outputs.
        without_donors: share of draws for which some value had no donor; they are left out.
    """

    recovered: float
    interval: tuple[float, float]
    losses: Mapping[str, float]
    without_donors: float


def scrub(
    model: Any,
    hypothesis: Hypothesis,
    inputs: Any,
    *,
    labels: Any = None,
    draws: int = 4,
    unclaimed: Unclaimed = "shared",
    seed: int = 0,
) -> Scrubbed:
    """Expected loss recovered: how much of the model's behaviour on a data set the claim preserves.

    Args:
        model: whatever :func:`causalmad.open_model` takes.
        hypothesis: the claim.
        inputs: the data set, which is its own pool of donors.
        labels: (n,) classes for a cross-entropy loss; without them the loss is the KL divergence from the model's own
            output, in nats.
        draws: scrubs per input.
        unclaimed: see :class:`Scrubber`.
        seed: decides the draws.

    Raises:
        HypothesisError: when the labels are no classes of the model, one for each input, or no input has a donor.

    References:
        Chan et al. 2022, "Causal scrubbing: a method for rigorously testing interpretability hypotheses".
    """
    opened = open_model(model)
    known = opened.inputs(inputs)
    scrubber = Scrubber.of(opened, hypothesis, known, seed, unclaimed)
    jobs = Jobs.of(known, draws)
    owner = np.repeat(np.arange(len(known)), draws)
    scrubbed, found = scrubber.output(jobs, at_rows(values_of(hypothesis, known), owner))
    clean, _ = scrubber.bench.run(np.arange(len(known)))
    # All unimportant: the output of some other input, whatever it is.
    other = clean[torch.as_tensor(scrubber.pool.any(jobs, "random"), device=clean.device)]
    wanted = None if labels is None else _classes(labels, clean)
    index = torch.as_tensor(owner, device=clean.device)
    losses = {
        "model": _losses(clean, clean, wanted)[owner],
        "scrubbed": _losses(scrubbed, clean[index], None if wanted is None else wanted[index]),
        "random": _losses(other, clean[index], None if wanted is None else wanted[index]),
    }
    if not found.any():
        raise HypothesisError("no input has donors for its values", tries=["claim coarser values", "more inputs"])
    kept = {name: values[found] for name, values in losses.items()}
    means = {name: float(values.mean()) for name, values in kept.items()}
    interval = _interval(kept, owner[found], len(known), seed)
    return Scrubbed(_recovered(**means), interval, means, float(1 - found.mean()))


def sites_of(model: OpenModel, hypothesis: Hypothesis) -> dict[str, tuple[Site, ...]]:
    """Claim -> its sites on a model."""
    return {claim.name: model.sites(claim.at) for claim in hypothesis.claims}


def _classes(labels: Any, logits: Tensor) -> Tensor:
    found = torch.as_tensor(np.asarray(labels), device=logits.device)
    if found.shape != logits.shape[:1]:
        raise HypothesisError(f"{found.numel()} labels for {len(logits)} inputs", needed="a class for every input")
    if found.is_floating_point() or not bool(((found >= 0) & (found < logits.shape[1])).all()):
        raise HypothesisError("labels are no classes", needed=f"whole numbers from 0 to {logits.shape[1] - 1}")
    return found.long()


def _losses(logits: Tensor, clean: Tensor, labels: Tensor | None) -> npt.NDArray[np.float64]:
    predicted = log_softmax(logits, -1)
    if labels is None:
        loss = divergence(log_softmax(clean, -1), predicted)
    else:
        loss = nll_loss(predicted, labels, reduction="none")
    found: npt.NDArray[np.float64] = loss.double().cpu().numpy()
    return found


def _recovered(model: float, scrubbed: float, random: float) -> float:
    return (random - scrubbed) / (random - model) if random > model else float("nan")


def _interval(losses: Mapping[str, npt.NDArray[np.float64]], owner: Rows, count: int, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap over inputs (all draws of an input go together)."""
    sums = {name: np.bincount(owner, values, minlength=count) for name, values in losses.items()}
    sizes = np.bincount(owner, minlength=count)
    rng = np.random.default_rng([seed, 11])
    shares = []
    for _ in range(1000):
        rows = rng.integers(count, size=count)
        total = max(int(sizes[rows].sum()), 1)
        shares.append(_recovered(**{name: float(values[rows].sum()) / total for name, values in sums.items()}))
    # A resample in which random outputs are no worse than the model's has no share.
    known = [share for share in shares if share == share]
    low, high = stats.mstats.mquantiles(known, [0.025, 0.975]) if known else (float("nan"), float("nan"))
    return float(low), float(high)
