"""Alignment: the subspace of an activation that carries a claimed variable (DAS and boundless DAS)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import log_softmax

from causalmad.errors import HypothesisError, nearest
from causalmad.hypotheses.bench import Bench, Held, fitting
from causalmad.hypotheses.counterfactuals import Counterfactuals, Pairs
from causalmad.hypotheses.graph import Hypothesis
from causalmad.hypotheses.interchange import Accuracy, require_causal_model
from causalmad.hypotheses.rotation import Method, Rotation
from causalmad.models import OpenModel, open_model
from causalmad.sites import Site
from causalmad.subspaces import Subspace


@dataclass(frozen=True)
class Alignment:
    """Where a variable was found, and how well that holds on inputs that played no part in the search.

    All accuracies are interchange-intervention accuracies on the same held-out pairs.

    Attributes:
        claim: the variable.
        site: its place: the site with a subspace, usable wherever a site is.
        hypothesis: the hypothesis with the claim moved there.
        aligned: accuracy of swapping the subspace.
        whole: accuracy of swapping the whole site, as before the search.
        random: accuracy of swapping a random subspace of the same size.
        control: accuracy of the same search towards wrong answers (every class stands for the next one). The search has
            power of its own: only what ``aligned`` reaches beyond this is evidence of the variable. None if left out.
        losses: training loss (cross-entropy, nats) of every step.
    """

    claim: str
    site: Site
    hypothesis: Hypothesis
    aligned: Accuracy
    whole: Accuracy
    random: Accuracy
    control: Accuracy | None
    losses: tuple[float, ...]

    @property
    def subspace(self) -> Subspace:
        """The directions that carry the variable.

        Raises:
            HypothesisError: when the site has none.
        """
        if self.site.subspace is None:
            raise HypothesisError(f"{self.site} has no subspace")
        return self.site.subspace

    def __str__(self) -> str:
        """The accuracies as text."""
        lines = [f"{self.claim} in {self.subspace.dimensions} of {self.subspace.features} directions of "]
        lines[0] += f"{self.site.within(None)}: interchange accuracy on held-out pairs"
        for name in ("aligned", "whole", "random", "control"):
            found = getattr(self, name)
            if found is not None:
                low, high = found.interval
                lines.append(f"  {name:8s} {found.share:.3f} (95 % interval {low:.3f} to {high:.3f})")
        lines.append(f"  the answer should change in {self.aligned.changed:.1%} of the {self.aligned.pairs} pairs")
        return "\n".join(lines)


def align_variable(
    model: Any,
    hypothesis: Hypothesis,
    claim: str,
    inputs: Any,
    *,
    site: str | Site | None = None,
    dimensions: int = 4,
    method: Method = "das",
    steps: int = 200,
    learning_rate: float = 1e-2,
    batch_size: int = 64,
    width_penalty: float = 1.0,
    held_out: float = 0.3,
    pairs: int = 500,
    control: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Alignment:
    """The subspace of an activation whose interchange gives the answers that a causal model predicts.

    A rotation of the activation is trained so that, with some of its coordinates taken from another input, the model
    answers what the hypothesis says it should when the variable is taken from that input. The interventions are
    pyvene's; the model is run by our own engine, so that any model and site will do.

    Args:
        model: whatever :func:`causalmad.open_model` takes.
        hypothesis: a causal model: mechanisms on the output and on every node with causes, values on all.
        claim: the variable to look for.
        inputs: trusted inputs; bases and sources are drawn from them.
        site: where to look; by default the claim's own (only) site.
        dimensions: number of directions, for ``das``.
        method: ``das``, or ``boundless``, which learns the number of directions as well.
        steps: training steps.
        learning_rate: Adam's, decreasing to zero; the boundary of ``boundless`` learns three times as fast.
        batch_size: pairs a step.
        width_penalty: nats that all directions cost together, for ``boundless``.
        held_out: share of the inputs that the accuracies are measured on, and that take no part in the training.
        pairs: held-out (base, source) pairs.
        control: also run the same search towards wrong answers, which doubles the time.
        seed: decides the split, the pairs and the first rotation.
        progress: called with (steps done, all steps).

    Raises:
        HypothesisError: when the hypothesis predicts no answers, no answer would ever change, or pyvene fails.
        SiteError: when the site does not exist, or is pooled.

    References:
        Geiger, Wu, Potts, Icard and Goodman 2023, arXiv 2303.02536 (DAS); Wu, Geiger, Icard, Potts and Goodman 2023,
        arXiv 2305.08809 (boundless DAS); Arora, Jurafsky and Potts 2024, arXiv 2402.12560 (controls).
    """
    require_causal_model(hypothesis)
    if method not in ("das", "boundless") or steps < 1 or not 0 < held_out < 1:
        raise HypothesisError(
            f"method={method!r}, steps={steps}, held_out={held_out}", needed="das or boundless, steps >= 1, a share"
        )
    opened = open_model(model)
    known = opened.inputs(inputs)
    where = _site(opened, hypothesis, claim, site)
    answers = Counterfactuals.of(hypothesis, claim, known)
    order = np.random.default_rng([seed, 17]).permutation(len(known))
    cut = round(len(known) * held_out)
    if cut < 2 or len(known) - cut < 2:
        raise HypothesisError(f"{len(known)} inputs cannot be split", needed="at least two to train on and two beside")
    tested = answers.draw(order[:cut], pairs, np.random.default_rng([seed, 18]))
    rng = np.random.default_rng([seed, 19])
    plan = [answers.balanced(order[cut:], batch_size, rng) for _ in range(steps)]
    _require_changes(claim, plan)
    classes = sorted({int(answer) for part in plan for answer in part.expected})

    search = _Search.of(opened, Bench.of(opened, known), where, method, dimensions, learning_rate, width_penalty)
    total = steps * (1 + control)
    subspace, losses = search.train(plan, seed, _counting(progress, 0, total))
    drawn = torch.randn(subspace.basis.shape, generator=torch.Generator().manual_seed(seed))
    aligned = where.within(subspace)
    wrong = None
    if control:
        shifted = [part.shifted(classes) for part in plan]
        found, _ = search.train(shifted, seed, _counting(progress, steps, total))
        wrong = search.accuracy(claim, where.within(found), tested.shifted(classes))
    return Alignment(
        claim,
        aligned,
        _moved(hypothesis, claim, aligned),
        aligned=search.accuracy(claim, aligned, tested),
        whole=search.accuracy(claim, where, tested),
        random=search.accuracy(claim, where.within(Subspace.spanning(drawn)), tested),
        control=wrong,
        losses=losses,
    )


@dataclass(frozen=True, eq=False)
class _Search:
    """Everything but the pairs: the model with all inputs, and their own values at the site."""

    model: OpenModel
    bench: Bench
    site: Site
    clean: Held
    method: Method
    dimensions: int
    learning_rate: float
    width_penalty: float

    @classmethod
    def of(cls, model: OpenModel, bench: Bench, site: Site, method: Method, dimensions: int, *rates: float) -> _Search:
        """Ready to train: what is swapped is captured once, so that a step runs neither bases nor sources again."""
        _, values = bench.run(np.arange(len(bench.pool)), read=[site], output=False)
        width = values[site].value.shape[-1]
        if not 0 < dimensions <= width:
            raise HypothesisError(f"dimensions={dimensions}", needed=f"1 to {width}, the width of {site}")
        return cls(model, bench, site, values[site], method, dimensions, *rates)

    def train(self, plan: list[Pairs], seed: int, done: Callable[[int], None]) -> tuple[Subspace, tuple[float, ...]]:
        """The subspace that gives the expected answers, and the loss of every step."""
        losses = []
        # Quiet restores the generators, which the first rotation is drawn from.
        with self.model.quiet(), torch.inference_mode(False), torch.enable_grad():
            torch.manual_seed(seed)
            width = self.clean.value.shape[-1]
            rotation = Rotation(self.method, width, self.dimensions, self.clean.value.device)
            adam = torch.optim.Adam(rotation.groups(self.learning_rate))
            slower = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.02, total_iters=len(plan))
            for step, pairs in enumerate(plan):
                rotation.cool(step / max(len(plan) - 1, 1))
                losses.append(self._step(rotation, adam, pairs))
                slower.step()
                done(step + 1)
            return rotation.subspace(), tuple(losses)

    def accuracy(self, claim: str, site: Site, pairs: Pairs) -> Accuracy:
        """How often swapping what is at a site gives the expected answer."""
        value = self.clean.value if site.subspace is None else site.subspace.coordinates(self.clean.value)
        held = Held(value, self.clean.mask).take(pairs.source)
        logits, _ = self.bench.run(pairs.base, {site: held})
        right = int((logits.argmax(-1).cpu().numpy() == pairs.expected).sum())
        interval = stats.binomtest(right, len(pairs)).proportion_ci(0.95)
        changed = float(pairs.changed.mean())
        return Accuracy(claim, right / len(pairs), (float(interval.low), float(interval.high)), len(pairs), changed)

    def _step(self, rotation: Rotation, adam: torch.optim.Optimizer, pairs: Pairs) -> float:
        batch = self.bench.pool.take(pairs.base)
        base = self._rows(self.clean.take(pairs.base).value)
        # Coordinates are rotated row by row, also where the site holds whole sequences.
        source = self._rows(fitting(self.site, self.clean.take(pairs.source), batch))
        swapped = rotation.swap(base, source)
        whole = swapped.detach().reshape(self.clean.take(pairs.base).value.shape)

        expected = torch.as_tensor(pairs.expected, device=base.device)[:, None]

        def log_probability(logits: Tensor) -> Tensor:
            if int(expected.max()) >= logits.shape[-1]:
                raise HypothesisError(
                    f"the hypothesis predicts class {int(expected.max())}", needed=f"one of {logits.shape[-1]} classes"
                )
            return log_softmax(logits, -1).gather(-1, expected).squeeze(-1)

        place = self.site.place
        run = self.model.run(
            batch,
            read=[place],
            edits={place: lambda value: self.site.put(value, whole, batch)},
            target=log_probability,
        )
        # The chain rule across the two libraries: the slope at the site is ours, from there on it is pyvene's.
        slope = self._rows(self.site.take(run.grads[place], batch))
        loss = -(swapped * slope).sum() / len(pairs) + self.width_penalty * rotation.width()
        adam.zero_grad()
        loss.backward()
        adam.step()
        if run.logits is None:
            raise HypothesisError("the run gave no logits")
        return -float(log_probability(run.logits).mean())

    def _rows(self, value: Tensor) -> Tensor:
        return value.reshape(-1, value.shape[-1])


def _site(model: OpenModel, hypothesis: Hypothesis, claim: str, site: str | Site | None) -> Site:
    """Where to look, without a subspace of its own."""
    names = [known.name for known in hypothesis.claims]
    if claim not in names:
        raise HypothesisError(f"no node {claim!r} in {hypothesis.name!r}", tries=nearest(claim, names))
    found = model.sites(hypothesis.claim(claim).at if site is None else site)
    if len(found) != 1:
        raise HypothesisError(
            f"{len(found)} sites to look for {claim!r} in", needed="one", tries=[f"site={str(found[0])!r}"]
        )
    return found[0].within(None)


def _moved(hypothesis: Hypothesis, claim: str, site: Site) -> Hypothesis:
    graph = hypothesis.to_networkx()
    graph.nodes[claim]["at"] = site
    return Hypothesis(graph)


def _require_changes(claim: str, plan: list[Pairs]) -> None:
    if not any(part.changed.any() for part in plan):
        raise HypothesisError(
            f"no answer changes when {claim!r} is taken from another input",
            causes=["inputs that all have the same value", "a mechanism that does not use it"],
            tries=["inputs that differ in it"],
        )


def _counting(progress: Callable[[int, int], None] | None, before: int, total: int) -> Callable[[int], None]:
    return lambda done: progress(before + done, total) if progress else None
