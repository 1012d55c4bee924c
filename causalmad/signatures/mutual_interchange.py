"""Mutual interchange: swaps with trusted inputs of the same answer, and of another, without any hypothesis."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.hypotheses.bench import Bench
from causalmad.hypotheses.interchange import log_probability
from causalmad.hypotheses.pool import NOBODY, Jobs, Pool
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.signatures.base import Column, Signatures, State, require_inputs
from causalmad.signatures.claims import restore_pool, save_pool
from causalmad.signatures.columns import Reduced
from causalmad.signatures.effects import settled
from causalmad.signatures.floors import with_floors
from causalmad.signatures.scaled import Scales, sample
from causalmad.signatures.units import Group, groups
from causalmad.sites import Site
from causalmad.targets import Readout, Target, TopMargin, as_target, divergence, margin

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_COLUMNS = (
    "from its like kl",
    "from its like margin",
    "into its like kl",
    "into its like margin",
    "into its like log-probability",
    "into another log-probability",
)


@dataclass(frozen=True)
class MutualInterchange:
    """Swaps of every site with trusted inputs of the same answer, both ways round, and with inputs of another answer.

    Where an output came about in the usual way, a trusted input of the same class and margin holds the same at every
    site: what it has there may stand in for this input's (from its like), and this input's for what it has (into its
    like). Put into an input of another class, the value moves that one's answer towards this input's class as far as
    the site carries the decision (into another). No hypothesis is needed.

    Args:
        sites: role, path, glob or a list of them. ``auto`` is, for tokens, what the attention and the MLP of every
            block write and the residual stream after every block but the last, at the token from which the logits are
            read (the first of a BERT, otherwise the last); for other models of a known family the same at all
            positions; for any other module four stretches of every hidden layer.
        draws: trusted partners per input and kind. Its like are those of the same predicted class with the nearest
            margin; where the class has fewer among the trusted inputs, those nearest in output distribution (KL
            divergence from this input's) fill up. Partners of another class are drawn by (seed, content of the input);
            where there is no other class, those farthest in output distribution take their place. No input is its own
            partner.
        target: the scalar whose change is measured, by default the margin of the model's own answer.

    Columns are, per site and averaged over the partners: the KL divergence from the clean output (nats) and the signed
    change of the target, from its like and into its like (there the partner's own clean output counts); the
    log-probability of this input's class that comes out of its like; and the change of it in inputs of another class.
    One more is the share of partners that are of another class for want of one. All as signed logarithms
    log(1 + |x| / s) with s the trusted median size, and at least a tenth of the largest such size.

    References:
        Geiger, Lu, Icard and Potts 2021, "Causal abstractions of neural networks", arXiv 2106.02997.
    """

    sites: str | tuple[str, ...] = "auto"
    draws: int = 4
    target: Target | Readout = field(default_factory=TopMargin)

    def __post_init__(self) -> None:
        require_options(self)
        if self.draws < 1:
            raise FitError(f"draws={self.draws}", needed="at least 1")

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedMutualInterchange:
        """Make the trusted inputs the pool of partners, and take the columns' units from some of them.

        Raises:
            FitError: when fewer than two trusted inputs differ.
            SiteError: when a site does not exist.
        """
        require_inputs(trusted)
        sites = self._sites(model, trusted)
        # In the order of the contents, so that the order in which trusted inputs come decides nothing.
        _, distinct = np.unique(np.array(trusted.digests), return_index=True)
        if len(distinct) < 2:
            raise FitError("the only trusted input cannot be its own partner", needed="at least two distinct inputs")
        partners = Partners.of(model, trusted[distinct], seed, sites)
        raw = FittedMutualInterchange(self, model, sites, partners, Scales.unknown())
        scales = Scales.of(raw.reduced(sample(trusted, seed)))
        return replace(raw, scales=with_floors(scales, lambda column: column.unit.split()[-1]))

    def restore(self, model: OpenModel, state: State) -> FittedMutualInterchange:
        """The fitted signature that wrote ``state``."""
        sites = tuple(site for text in state.data["sites"] for site in model.sites(str(text)))
        partners = Partners.of(model, *restore_pool(state), sites)
        return FittedMutualInterchange(self, model, sites, partners, Scales.restore(state))

    def _sites(self, model: OpenModel, trusted: Inputs) -> tuple[Site, ...]:
        if self.sites != "auto":
            return model.sites(self.sites)
        if model.architecture is None:
            return tuple(site for group in groups(model, trusted, "layers") for site in group.sites)
        position = (0 if model.architecture.name == "bert" else -1) if trusted.tokens else None
        found = (*model.sites("residual")[:-1], *model.sites("attentions"), *model.sites("mlps"))
        return tuple(site.at(position) for site in found)


@dataclass(frozen=True, eq=False)
class Partners:
    """The trusted inputs as partners, by their outputs.

    Attributes:
        pool: the trusted inputs by the class that the model gives them.
        bench: the model without standing edits, and these inputs.
        logits: (trusted, classes) their own outputs.
        classes: (trusted,) top class of each.
        margins: (trusted,) its margin, in nats.
    """

    pool: Pool
    bench: Bench
    logits: Tensor
    classes: Rows
    margins: Floats

    @classmethod
    def of(cls, model: OpenModel, trusted: Inputs, seed: int, patched: Sequence[Site] = ()) -> Partners:
        """One run of the trusted inputs.

        Args:
            model: the opened model.
            trusted: the inputs.
            seed: decides the draws.
            patched: where they will be patched.
        """
        bench = Bench.of(model.plain, trusted, patched)
        logits, _ = bench.run(np.arange(len(trusted)))
        classes, margins = _answers(logits)
        members: dict[Hashable, Rows] = {label: np.flatnonzero(classes == label) for label in set(classes.tolist())}
        own: dict[Hashable, Rows] = {digest: np.array([row]) for row, digest in enumerate(trusted.digests)}
        pool = Pool(trusted, {"class": tuple(classes.tolist())}, {"class": members}, own, seed)
        return cls(pool, bench, logits, classes, margins)

    def like(self, inputs: Inputs, logits: Tensor, draws: int) -> Rows:
        """(n, draws) the nearest by margin of the same class, then the nearest by distribution of the others."""
        classes, margins = _answers(logits)
        same, itself = self.classes[None] == classes[:, None], self._itself(inputs)
        apart = np.abs(self.margins[None] - margins[:, None])
        short = (same & ~itself).sum(1) < draws
        if short.any():
            apart[short] = np.where(same[short], apart[short], self.distances(logits[torch.as_tensor(short)]))
        return _first(np.lexsort((apart, ~same, itself), axis=1), itself, draws)

    def another(self, inputs: Inputs, logits: Tensor, draws: int) -> Rows:
        """(n, draws) of another class, drawn by seed and content; where there is none the farthest by distribution."""
        wanted = np.repeat(_answers(logits)[0], draws).tolist()
        found = self.pool.mismatched(Jobs.of(inputs, draws), "class", wanted, "another").reshape(-1, draws)
        alone = (found == NOBODY).any(1)
        if alone.any():
            itself = self._itself(inputs)[alone]
            far = -self.distances(logits[torch.as_tensor(alone)])
            found[alone] = _first(np.lexsort((far, itself), axis=1), itself, draws)
        return found

    def distances(self, logits: Tensor) -> Floats:
        """(n, trusted) KL divergence, in nats, from each output to each trusted one."""
        clean, theirs = (log_softmax(values.double(), -1) for values in (logits, self.logits))
        cross = clean.exp() @ theirs.T
        found: Floats = ((clean.exp() * clean).sum(-1, keepdim=True) - cross).cpu().numpy()
        return found

    def _itself(self, inputs: Inputs) -> npt.NDArray[np.bool_]:
        """(n, trusted) whether a partner has the input's own content."""
        found: npt.NDArray[np.bool_] = np.array(self.pool.inputs.digests)[None] == np.array(inputs.digests)[:, None]
        return found


@dataclass(frozen=True, eq=False)
class FittedMutualInterchange:
    """Mutual interchange on one model with its trusted partners."""

    spec: MutualInterchange
    model: OpenModel
    sites: tuple[Site, ...]
    partners: Partners
    scales: Scales

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the numbers are."""
        return self.scales.columns

    @property
    def groups(self) -> tuple[Group, ...]:
        """The sites as units, for repairs."""
        return (Group("site", tuple(map(str, self.sites)), self.sites),)

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) signatures; three runs for every site and partner."""
        return self.scales.apply(self.model.inputs(inputs), self.reduced)

    def donors_of(self, inputs: Inputs) -> dict[str, tuple[str, ...]]:
        """Kind of partner -> ids of the trusted partners that one input is given."""
        logits, _ = Bench.of(self.model, inputs).run(np.arange(len(inputs)))
        ids, draws = self.partners.pool.inputs.ids, self.spec.draws
        drawn = {"its like": self.partners.like, "another": self.partners.another}
        return {name: tuple(ids[row] for row in draw(inputs, logits, draws).flat) for name, draw in drawn.items()}

    def state(self) -> State:
        """The pool of partners, the sites, and the columns with their units."""
        state = save_pool(self.partners.pool)
        return self.scales.save(State(state.tensors, {**state.data, "sites": [str(site) for site in self.sites]}))

    def reduced(self, inputs: Inputs) -> Reduced:
        """The columns in their own units: nats, and the target's."""
        names = [(f"{site} {what}", str(site), what) for site in self.sites for what in _COLUMNS]
        columns = [Column(name, site, what, block=what) for name, site, what in names]
        columns.append(Column("partners of another class", unit="partners", block="partners"))
        # A batch at a time, so that what its partners hold at all sites fits into memory.
        starts = range(0, len(inputs), self.model.batch_size)
        with self.model.quiet():
            parts = [self._rows(inputs[start : start + self.model.batch_size]) for start in starts]
        return Reduced(tuple(columns), np.concatenate(parts))

    def _rows(self, inputs: Inputs) -> Floats:
        """(n, columns) of some inputs."""
        partners, draws = self.partners, self.spec.draws
        bench = Bench.of(self.model, inputs, self.sites)
        clean, mine = bench.run(np.arange(len(inputs)), read=self.sites)
        like, another = (draw(inputs, clean, draws).reshape(-1) for draw in (partners.like, partners.another))
        owner = np.repeat(np.arange(len(inputs)), draws)
        used, place = np.unique(like, return_inverse=True)
        _, theirs = partners.bench.run(used, read=self.sites, output=False)
        classes = clean.argmax(-1).cpu().numpy()[owner]
        before = log_probability(partners.logits[torch.as_tensor(another)], classes)
        values: list[Floats] = []
        for site in self.sites:
            given, _ = bench.run(owner, {site: theirs[site].take(place)})
            values += self._changes(clean[torch.as_tensor(owner)], given)
            rows, held = np.concatenate([like, another]), mine[site].take(np.concatenate([owner, owner]))
            into, other = partners.bench.run(rows, {site: held})[0].split(len(owner))
            values += self._changes(partners.logits[torch.as_tensor(like)], into)
            values.append(log_probability(into, classes))
            values.append(log_probability(settled(other, partners.logits[torch.as_tensor(another)]), classes) - before)
        values.append((partners.classes[like] != classes).astype(np.float64))
        return np.stack([value.reshape(-1, draws).mean(1) for value in values], axis=1)

    def _changes(self, clean: Tensor, patched: Tensor) -> list[Floats]:
        """(jobs,) KL divergence from the clean output, and the change of the target."""
        clean, patched = clean.double(), settled(patched, clean.double())
        read = as_target(self.spec.target).bind(clean)
        kl = divergence(log_softmax(clean, -1), log_softmax(patched, -1))
        return [kl.cpu().numpy(), (read(patched) - read(clean)).double().cpu().numpy()]


def _answers(logits: Tensor) -> tuple[Rows, Floats]:
    """(n,) the top class, and its margin in nats."""
    top = logits.argmax(-1)
    return top.cpu().numpy(), margin(logits.double(), top).cpu().numpy()


def _first(order: Rows, itself: npt.NDArray[np.bool_], draws: int) -> Rows:
    """(n, draws) the first partners of an order that ends with the input itself, again from the start if too few."""
    others = order.shape[1] - itself.sum(1)
    return np.take_along_axis(order, np.arange(draws)[None] % others[:, None], axis=1)
