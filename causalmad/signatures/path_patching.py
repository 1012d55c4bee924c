"""Path patching: what travels along named paths, by exact patching with trusted donors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.hypotheses.donors import Donors
from causalmad.hypotheses.edges import EdgePatcher
from causalmad.hypotheses.paths import path_effects, path_sources
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.signatures.base import Column, Signatures, State, columns_from_data, columns_to_data, signatures
from causalmad.signatures.columns import scales_of, signed_log
from causalmad.signatures.scaled import sample
from causalmad.targets import Readout, Target, TopMargin, as_target

_STATISTICS = ("kl", "kl sd", "margin", "margin sd")


@dataclass(frozen=True)
class PathPatching:
    """What travels along named paths: the exact effect of a trusted donor's value there and nowhere else.

    For every path and donor the model is run again with the first name's value taken from the donor, seen by the next
    name on the path alone, and so on; everything beyond the last name follows. The effect is the KL divergence from
    the clean output (nats) and the signed change of the target.

    Args:
        paths: such as ``a0.h1->logits``, ``a0.h1->a1.h2<q>`` or ``m0~>a1.h2->logits``: heads ``a{layer}.h{head}``, MLPs
            ``m{layer}``, ``input`` and ``logits``; ``->`` is the residual stream alone, ``~>`` lets the MLPs between
            pass the change on. ``direct`` means every head's and MLP's path to the logits, ``a0.h0->logits`` and so on.
        donors: how many trusted donors.
        target: the scalar whose change is measured, by default the margin of the model's own answer.

    Columns are, for every path, the mean and the standard deviation over donors of both, as signed logarithms
    log(1 + |effect| / s) with s the median size on trusted inputs.

    References:
        Goldowsky-Dill et al. 2023, "Localizing model behavior with path patching", arXiv 2304.05969.
    """

    paths: str | tuple[str, ...] = "direct"
    donors: int = 4
    target: Target | Readout = field(default_factory=TopMargin)

    def __post_init__(self) -> None:
        require_options(self)
        if self.donors < 1:
            raise FitError(f"donors={self.donors}", needed="at least 1")
        if not self.paths:
            raise FitError("no paths", tries=["paths=('a0.h1->logits',)", "paths='direct'"])

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedPathPatching:
        """Draw the donors, and take the columns' units from some of the trusted inputs.

        Raises:
            FitError: when the trusted inputs are too few.
            HypothesisError: for a model whose edges are not known, or a path that it does not have.
        """
        patcher = EdgePatcher.of(model, Donors.draw(trusted, self.donors, seed))
        raw = FittedPathPatching(self, patcher, self._columns(patcher), np.ones(0))
        some = sample(trusted, seed, patcher.donors.inputs.digests)
        return FittedPathPatching(self, patcher, raw.columns, scales_of(raw.effects(some)))

    def restore(self, model: OpenModel, state: State) -> FittedPathPatching:
        """The fitted signature that wrote ``state``."""
        fields = {key.removeprefix("donors:"): v for key, v in state.tensors.items() if key.startswith("donors:")}
        patcher = EdgePatcher.of(model, Donors.unpack(fields, state.data["donors"]))
        columns = columns_from_data(state.data["columns"])
        return FittedPathPatching(self, patcher, columns, state.tensors["scales"].numpy())

    def names(self, patcher: EdgePatcher) -> tuple[str, ...]:
        """The paths on a model."""
        if self.paths == "direct":
            return tuple(f"{sender}->logits" for sender in patcher.computation.senders)
        return (self.paths,) if isinstance(self.paths, str) else tuple(self.paths)

    def _columns(self, patcher: EdgePatcher) -> tuple[Column, ...]:
        found = []
        for statistic in _STATISTICS:
            for path in self.names(patcher):
                path_sources(patcher.computation, path)
                site = str(patcher.computation.site(path.replace("~", "-").partition("->")[0].strip()))
                found.append(Column(f"paths {statistic} {path}", site, path, block=f"paths {statistic}"))
        return tuple(found)


@dataclass(frozen=True, eq=False)
class FittedPathPatching:
    """Path patching on one model with its donors."""

    spec: PathPatching
    patcher: EdgePatcher
    columns: tuple[Column, ...]
    scales: npt.NDArray[np.float64]

    @property
    def donor_digests(self) -> tuple[str, ...]:
        """Contents of the donors, which the reference leaves out."""
        return self.patcher.donors.inputs.digests

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) effects; one run of the model per input, path and donor, stacked."""
        known = self.patcher.model.inputs(inputs)
        if not len(known):
            return signatures(known, self.columns, np.empty((0, len(self.columns))))
        return signatures(known, self.columns, signed_log(self.effects(known), self.scales))

    def state(self) -> State:
        """The donors, the columns and their units."""
        fields, donors = self.patcher.donors.pack()
        tensors = {f"donors:{key}": value for key, value in fields.items()}
        tensors["scales"] = torch.from_numpy(self.scales)
        return State(tensors, {"donors": donors, "columns": columns_to_data(self.columns)})

    def effects(self, inputs: Inputs) -> npt.NDArray[np.float64]:
        """(n, d) the columns in their own units: nats of divergence, and the target's."""
        graph, target = self.patcher.computation, as_target(self.spec.target)
        tables = [path_sources(graph, path) for path in self.spec.names(self.patcher)]
        which = torch.as_tensor(self.patcher.donors.of(inputs))
        found = np.zeros((len(inputs), len(self.columns)))
        with self.patcher.model.quiet():
            for batch in self.patcher.batches(inputs):
                chosen = which[torch.as_tensor(batch.rows)]
                kinds = path_effects(self.patcher, target, batch, chosen, tables)
                statistics = [part for kind in kinds for part in (kind.mean(-1), kind.std(-1, correction=0))]
                found[batch.rows] = torch.cat(statistics, 1).double().numpy()
        return found
