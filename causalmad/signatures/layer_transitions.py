"""Layer transitions: how surprising each layer is, given the layer before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from causalmad.errors import SiteError
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.signatures.activations import Activations, FittedActivations
from causalmad.signatures.base import (
    Column,
    Signatures,
    State,
    columns_from_data,
    columns_to_data,
    require_inputs,
    signatures,
)
from causalmad.signatures.kept import distinct, own_rows
from causalmad.signatures.probes import split

Floats = npt.NDArray[np.float64]

_RIDGES = np.logspace(-4, 2, 13)  # relative to the mean squared singular value of the layer before


@dataclass(frozen=True)
class LayerTransitions:
    """Residual of every layer given the layer before it, under a linear map fitted on trusted inputs.

    An anomaly that looks normal at every single layer must still come from somewhere: a mechanism that trusted inputs
    don't use shows as a step between layers that their steps do not predict.

    Args:
        sites: role, path, glob or a list of them, at least two, in the order of the steps; ``auto`` is the residual
            stream after every block of a known architecture, and every nonlinear layer of any other module.
        positions: which token: a number (``-1`` is the last real one), the name of a position column, or ``all`` for
            the mean over the tokens. Inputs that are no tokens are averaged over space.

    Columns, per pair of consecutive sites of widths d and e: the conditional surprise, the Mahalanobis length of the
    residual under its trusted covariance, over the square root of e (about 1 for a normal input); the residual's norm
    in the model's units; and, where d = e, the norm of the plain difference and its Mahalanobis length under the
    diagonal covariance of trusted differences, over the square root of e.

    The map is a ridge regression; its penalty, out of a fixed grid relative to the size of the layer, is the one of
    smallest leave-one-out error. An input among the trusted ones on which the map stands would look less surprising
    than a new one, so its residual is that of the map fitted without it (exact for ridge regression: the residual over
    one minus its leverage), the covariance (Ledoit and Wolf's shrinkage) is that of these residuals, and its own part
    of the covariance is taken out before its length is measured.

    Memory: two matrices of the layers' width squared per pair, in double precision.

    References:
        Covariance propagation as a layer-conditional density: Hilton et al., Alignment Research Center. Layer
        differences: LCF, arXiv 2604.24542. Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional
        covariance matrices".
    """

    sites: str | tuple[str, ...] = "auto"
    positions: int | str = -1

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedLayerTransitions:
        """Fit the maps and the covariances of their residuals; one forward pass over the trusted inputs.

        Raises:
            FitError: when there are fewer than 3 distinct inputs.
            SiteError: when a site does not exist, or there is only one.
        """
        require_inputs(trusted)
        layers = Activations(self.sites, self.positions).fit(model, trusted)
        if len(layers.sites) < 2:
            raise SiteError(
                f"one site, {layers.sites[0]}, where steps from layer to layer are wanted",
                needed="at least two sites",
                tries=["sites='residual'", "sites='layers'"],
            )
        kept = distinct(trusted, least=3)
        parts = split(layers, kept)
        steps = tuple(_Step.fit(before, after) for before, after in pairwise(parts))
        return FittedLayerTransitions(model, layers, kept.digests, steps, _columns(layers, steps))

    def restore(self, model: OpenModel, state: State) -> FittedLayerTransitions:
        """The fitted signature that wrote ``state``."""
        layers = Activations().restore(model, State({}, state.data["layers"]))
        steps = tuple(
            _Step(**{name: state.tensors[f"{i}:{name}"].numpy() for name in _Step.__dataclass_fields__})
            for i in range(len(layers.sites) - 1)
        )
        columns = columns_from_data(state.data["columns"])
        return FittedLayerTransitions(model, layers, tuple(state.data["digests"]), steps, columns)


@dataclass(frozen=True, eq=False)
class FittedLayerTransitions:
    """Layer transitions of one model.

    Attributes:
        model: the model.
        layers: reads the activations.
        digests: contents of the trusted inputs on which the maps stand.
        steps: the maps and covariances, in the order of the pairs.
        columns: what the numbers are.
    """

    model: OpenModel
    layers: FittedActivations
    digests: tuple[str, ...]
    steps: tuple[_Step, ...]
    columns: tuple[Column, ...]

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) lengths; one forward pass, stopped after the last site."""
        known = self.model.inputs(inputs)
        own = own_rows(known, self.digests)
        parts = split(replace(self.layers, model=self.model), known)
        found = [step.lengths(*pair, own) for step, pair in zip(self.steps, pairwise(parts), strict=True)]
        return signatures(known, self.columns, np.concatenate(found, axis=1))

    def state(self) -> State:
        """The maps, the covariances, and which inputs they stand on."""
        tensors = {f"{i}:{k}": torch.from_numpy(v) for i, step in enumerate(self.steps) for k, v in vars(step).items()}
        data = {"layers": self.layers.state().data, "digests": list(self.digests)}
        return State(tensors, {**data, "columns": columns_to_data(self.columns)})


@dataclass(frozen=True, eq=False)
class _Step:
    """From one layer (n, d) to the next (n, e).

    Attributes:
        mean: (d,) trusted mean of the layer before.
        target: (e,) trusted mean of the layer after.
        weights: (d, e) the ridge map.
        leverages: (trusted,) leverage of each trusted input, its intercept included.
        precision: (e, e) inverse of the shrunk covariance of the leave-one-out residuals.
        own: () weight of one trusted residual's outer product in that covariance.
        usual: (e,) mean of the differences, (0,) where the widths differ.
        spread: (e,) standard deviation of the differences, (0,) where the widths differ.
    """

    mean: Floats
    target: Floats
    weights: Floats
    leverages: Floats
    precision: Floats
    own: Floats
    usual: Floats
    spread: Floats

    @classmethod
    def fit(cls, before: Floats, after: Floats) -> _Step:
        from sklearn.covariance import LedoitWolf

        n, mean, target = len(before), before.mean(0), after.mean(0)
        left, sizes, right = np.linalg.svd(before - mean, full_matrices=False)
        inside = left.T @ (after - target)

        def without_own(ridge: float) -> tuple[Floats, Floats]:
            """Leverages, and the residuals that each input has under the map that was fitted without it."""
            kept = sizes**2 / (sizes**2 + ridge)
            leverages = 1 / n + left**2 @ kept
            fitted = left @ (kept[:, None] * inside)
            return leverages, (after - target - fitted) / (1 - leverages)[:, None]

        grid = [float(ridge) for ridge in _RIDGES * (float((sizes**2).mean()) or 1.0)]
        ridge = min(grid, key=lambda ridge: float((without_own(ridge)[1] ** 2).mean()))
        leverages, residuals = without_own(ridge)
        weights = right.T @ ((sizes / (sizes**2 + ridge))[:, None] * inside)
        # Residuals have no mean that a new input's would share: the intercept is in the map.
        shrunk = LedoitWolf(assume_centered=True, store_precision=False).fit(residuals)
        floor = 1e-8 * float(np.trace(shrunk.covariance_)) / len(target) or 1.0  # where residuals have no variance
        precision = np.linalg.inv(shrunk.covariance_ + floor * np.eye(len(target)))
        usual, spread = np.empty(0), np.empty(0)
        if before.shape == after.shape:
            change = after - before
            usual, spread = change.mean(0), change.std(0, ddof=1)
            spread = np.maximum(spread, 1e-4 * float(np.sqrt((spread**2).mean())) or 1.0)
        own = np.array((1 - shrunk.shrinkage_) / n)
        # One layout, whether fitted or read from a file: products of another layout differ in their last bits.
        weights, precision = np.ascontiguousarray(weights), np.ascontiguousarray(precision)
        return cls(mean, target, weights, leverages, precision, own, usual, spread)

    def lengths(self, before: Floats, after: Floats, own: npt.NDArray[np.int64]) -> Floats:
        """(n, 2 or 4) the columns of this step; ``own`` says which trusted input each is, -1 for none."""
        trusted, width = own >= 0, after.shape[1]
        residual = after - self.target - (before - self.mean) @ self.weights
        residual = residual / np.where(trusted, 1 - self.leverages[own], 1.0)[:, None]
        squared = np.einsum("nd,nd->n", residual @ self.precision, residual)
        # Without its own outer product in the covariance, by the formula of Sherman and Morrison.
        squared = squared / np.where(trusted, 1 - float(self.own) * squared, 1.0)
        found = [np.sqrt(np.maximum(squared, 0) / width), np.linalg.norm(residual, axis=1)]
        if len(self.usual):
            change = after - before
            found += [np.linalg.norm(change, axis=1), np.sqrt((((change - self.usual) / self.spread) ** 2).mean(1))]
        return np.stack(found, axis=1)


def _columns(layers: FittedActivations, steps: tuple[_Step, ...]) -> tuple[Column, ...]:
    found: list[Column] = []
    for before, after, step in zip(layers.sites, layers.sites[1:], steps):
        kinds: Mapping[str, str] = {"surprise": "conditional", "residual": "conditional"}
        kinds = {**kinds, "step": "difference", "step surprise": "difference"} if len(step.usual) else kinds
        position = "" if after.position is None else str(after.position)
        found += [Column(f"{before} -> {after} {k}", str(after), k, position, block) for k, block in kinds.items()]
    return tuple(found)
