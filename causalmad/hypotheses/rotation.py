"""Rotations trained by pyvene: the interventions of DAS and boundless DAS, on values that our own engine supplies."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from causalmad.errors import HypothesisError
from causalmad.subspaces import Subspace

BF = float(os.environ.get("BF", "1"))
Method = Literal["das", "boundless"]

# Softness of the boundary at the start of the training (a share of the width) and at its end (in coordinates).
# Wu et al. 2023 go from 50 to 0.1 of 4096 coordinates; 50 would blur a small layer to nothing.
_WARM, _COLD = 1 / 16, 0.1


class _Anchor(nn.Module):
    """What pyvene sees in place of the model: one module whose output is the activation at the site.

    pyvene takes all hooks off the model that it is given, freezes its parameters for good, edits activations in place
    and knows a dozen architectures. None of that matters here, and any model, site and engine will do.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.site = nn.Identity()
        self.device = device
        self.config = SimpleNamespace()

    def forward(self, value: Tensor) -> Tensor:
        found: Tensor = self.site(value.clone())  # pyvene writes into it
        return found


class Rotation:
    """A rotation of an activation whose first coordinates are taken from another run.

    Args:
        method: ``das`` has a fixed number of coordinates, ``boundless`` learns how many.
        features: width of the activation.
        dimensions: number of coordinates, for ``das``.
        device: where the activations are.

    Raises:
        HypothesisError: when pyvene cannot be imported or makes no such intervention.
    """

    def __init__(self, method: Method, features: int, dimensions: int, device: torch.device) -> None:
        with _of_pyvene("could not be imported"):
            pyvene = importlib.import_module("pyvene")
        with _of_pyvene(f"makes no {method} intervention of {features} features"):
            if method == "das":
                layer = pyvene.LowRankRotatedSpaceIntervention(embed_dim=features, low_rank_dimension=dimensions)
            else:
                layer = pyvene.BoundlessRotatedSpaceIntervention(embed_dim=features)
                # pyvene counts coordinates from 0, where its boundary lets one half through however sharp it is.
                layer.intervention_population.data = torch.arange(features) + 0.5
            self.layer: Any = layer.to(device)
            self._model = pyvene.IntervenableModel(
                {"component": "site.output", "intervention": self.layer}, _Anchor(device)
            )
        self.method, self.features = method, features

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Parameters for an optimiser; the boundary, a single number, learns faster."""
        found: list[dict[str, Any]] = [{"params": list(self.layer.rotate_layer.parameters()), "lr": learning_rate}]
        if self.method == "boundless":
            found.append({"params": [self.layer.intervention_boundaries], "lr": 3 * learning_rate})
        return found

    def cool(self, done: float) -> None:
        """Sharpen the boundary: ``done`` is the share of the training that is behind."""
        if self.method == "boundless":
            warm = max(_WARM * self.features, _COLD)
            self.layer.set_temperature(torch.tensor(warm + (_COLD - warm) * done, device=self._device))

    def swap(self, base: Tensor, source: Tensor) -> Tensor:
        """(rows, features) of the base with the rotated coordinates of the source, differentiable in the rotation."""
        (key,) = self._model.sorted_keys
        with _of_pyvene("failed"):
            _, swapped = self._model({"value": base}, source_representations={key: source})
        found: Tensor = swapped
        return found

    def width(self) -> Tensor:
        """The share of the coordinates that are taken from the source, for a penalty; zero for ``das``."""
        if self.method == "das":
            return torch.zeros((), device=self._device)
        boundary: Tensor = self.layer.intervention_boundaries.clamp(1e-3, 1).sum()
        return boundary

    def subspace(self) -> Subspace:
        """The directions that are taken from the source, by a hard boundary."""
        basis = self.layer.rotate_layer.weight.detach()
        if self.method == "boundless":
            basis = basis[:, : min(max(round(float(self.width().detach()) * self.features), 1), self.features)]
        return Subspace.spanning(basis)

    @property
    def _device(self) -> torch.device:
        found: torch.device = self.layer.rotate_layer.weight.device
        return found


@contextmanager
def _of_pyvene(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise HypothesisError(
            f"pyvene {what}: {type(error).__name__}: {error}",
            causes=["a version of pyvene or transformers that it was not written for", "too little memory"],
            tries=["pip install 'pyvene>=0.1.8,<0.2'"],
        ) from error
