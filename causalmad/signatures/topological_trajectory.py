"""Topological trajectory: from layer to layer, how near an input is to trusted inputs of its own predicted class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.signatures.activations import Activations, FittedActivations, features
from causalmad.signatures.base import Column, Signatures, State, require_inputs, signatures
from causalmad.signatures.kept import distinct, others
from causalmad.signatures.table import table

# Distances that differ by less count as equal, so that rounding decides no rank.
_TIE = 1e-6


@dataclass(frozen=True)
class TopologicalTrajectory:
    """Rank of the nearest trusted neighbour of the predicted class among all trusted inputs, layer by layer (TED).

    A normal input comes near to those of its class early and stays there; one that reaches its answer in another way is
    near to inputs of other classes until late.

    Args:
        sites: role, path, glob or a list of them; ``auto`` is the residual stream after every block of a known
            architecture, and every nonlinear layer of any other module.
        positions: which token: a number (``-1`` is the last real one), the name of a position column, or ``all`` for
            the mean over the tokens. Inputs that are no tokens are averaged over space.
        anchor: ``each layer`` takes the nearest neighbour of the predicted class anew in every layer; ``last`` takes
            the one that is nearest at the last site, and asks for its rank in every layer.
        most: how many trusted inputs are kept, of distinct content, drawn by seed. Their activations at all sites are
            what the fitted signature stores.

    Columns, one per site: log(1 + rank) / log(1 + n), between 0 (the nearest of all) and 1 (all n others are nearer, or
    none of them is of the predicted class), where rank is the number of trusted inputs that are strictly nearer, by
    Euclidean distance, than the neighbour. The predicted class is the model's own answer, for trusted inputs as well.
    An input that is itself kept is left out of its own ranking.

    References:
        TED: Mo et al. 2024, arXiv 2312.02673.
    """

    sites: str | tuple[str, ...] = "auto"
    positions: int | str = -1
    anchor: Literal["each layer", "last"] = "each layer"
    most: int = 1000

    def __post_init__(self) -> None:
        require_options(self)
        if self.anchor not in ("each layer", "last"):
            raise FitError(f"anchor={self.anchor!r}", needed="'each layer' or 'last'")
        if self.most < 2:
            raise FitError(f"most={self.most}", needed="at least 2 trusted inputs to be near to")

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedTopologicalTrajectory:
        """Keep activations and answers of trusted inputs; one forward pass over them.

        Raises:
            FitError: when there are fewer than 2 distinct inputs.
            SiteError: when a site does not exist.
        """
        require_inputs(trusted)
        layers = Activations(self.sites, self.positions).fit(model, trusted)
        kept = distinct(trusted, self.most, seed)
        values, answers = _read(model, layers, kept)
        return FittedTopologicalTrajectory(self, model, layers, kept.digests, values, answers)

    def restore(self, model: OpenModel, state: State) -> FittedTopologicalTrajectory:
        """The fitted signature that wrote ``state``."""
        layers = Activations().restore(model, State({}, state.data["layers"]))
        digests = tuple(state.data["digests"])
        values, answers = state.tensors["values"], state.tensors["answers"]
        return FittedTopologicalTrajectory(self, model, layers, digests, values, answers)


@dataclass(frozen=True, eq=False)
class FittedTopologicalTrajectory:
    """Trusted activations of one model, to be near to.

    Attributes:
        spec: what was fitted.
        model: the model.
        layers: reads the activations.
        digests: contents of the kept inputs.
        values: (kept, d) their activations at all sites beside each other, float32.
        answers: (kept,) their predicted classes.
    """

    spec: TopologicalTrajectory
    model: OpenModel
    layers: FittedActivations
    digests: tuple[str, ...]
    values: Tensor
    answers: Tensor

    @property
    def columns(self) -> tuple[Column, ...]:
        """One rank per site."""
        places = ["" if site.position is None else str(site.position) for site in self.layers.sites]
        return tuple(
            Column(f"{site} rank", str(site), "rank", place, "rank")
            for site, place in zip(self.layers.sites, places, strict=True)
        )

    def __call__(self, inputs: Any) -> Signatures:
        """(n, sites) log ranks as shares of the largest; one forward pass, and n times kept distances a site."""
        known = self.model.inputs(inputs)
        allowed = torch.from_numpy(others(known, self.digests))
        sites = _sites(self.layers)

        def rows(batch: Batch) -> Tensor:
            values, answers = _states(self.model, self.layers, batch)
            distances = torch.stack([_distances(values[:, at], self.values[:, at]) for at in sites])
            return self._ranks(distances, answers, allowed[torch.as_tensor(batch.rows)]).T

        return signatures(known, self.columns, table(self.model, known, len(sites), rows))

    def state(self) -> State:
        """Activations, answers and contents of the kept inputs."""
        data = {"layers": self.layers.state().data, "digests": list(self.digests)}
        return State({"values": self.values, "answers": self.answers}, data)

    def _ranks(self, distances: Tensor, answers: Tensor, allowed: Tensor) -> Tensor:
        """(sites, batch) columns from distances (sites, batch, kept)."""
        distances = distances.masked_fill(~allowed, float("inf"))
        same = allowed & (answers[:, None] == self.answers)
        to_same = distances.masked_fill(~same, float("inf"))
        chosen = to_same if self.spec.anchor == "each layer" else to_same[-1:]
        nearest = chosen.argmin(-1).expand(len(distances), -1)
        reach = distances.gather(-1, nearest[..., None])
        ranks = (distances < reach * (1 - _TIE)).sum(-1).double()
        count = allowed.sum(-1).double()
        ranks = torch.where(same.any(-1), ranks, count)
        return torch.log1p(ranks) / torch.log1p(count)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) Euclidean distances in double precision; not by products, whose cancellation would make ranks of noise."""
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _sites(layers: FittedActivations) -> list[npt.NDArray[np.int64]]:
    """Which entries of a row belong to each site."""
    names = np.array([column.site for column in layers.columns])
    return [np.flatnonzero(names == str(site)) for site in layers.sites]


def _states(model: OpenModel, layers: FittedActivations, batch: Batch) -> tuple[Tensor, Tensor]:
    """Activations (batch, d) at all sites, float32, and predicted classes (batch,), both on the CPU."""
    run = model.run(batch, read=list({site.place: None for site in layers.sites}))
    values = torch.cat([features(run.values[site.place], site, batch) for site in layers.sites], dim=1)
    if run.logits is None or not bool(torch.isfinite(values).all()):
        raise FitError("NaN or infinite activations", causes=["NaN in the inputs", "overflow in half precision"])
    return values.float().cpu(), run.logits.argmax(-1).cpu()


def _read(model: OpenModel, layers: FittedActivations, inputs: Inputs) -> tuple[Tensor, Tensor]:
    def rows(batch: Batch) -> Tensor:
        values, answers = _states(model, layers, batch)
        return torch.cat([values.double(), answers[:, None].double()], 1)

    found = torch.from_numpy(table(model, inputs, len(layers.columns) + 1, rows))
    return found[:, :-1].float().contiguous(), found[:, -1].long().contiguous()
