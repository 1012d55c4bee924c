"""Attention patterns: where each head looks from the position at which the model answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.hypotheses.donors import from_end
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.models.attention import attending
from causalmad.signatures.base import (
    Column,
    Signatures,
    State,
    columns_from_data,
    columns_to_data,
    require_inputs,
    signatures,
)
from causalmad.signatures.table import table
from causalmad.sites import position_index


@dataclass(frozen=True)
class AttentionPatterns:
    """Where each head looks from the position of the answer: its largest weights, sorted, and their entropy.

    One forward pass, without gradients. A row of weights sorted in falling order says how a head spreads its attention
    wherever the tokens stand that it attends to.

    Args:
        top: how many of the largest weights of a row; zeros follow where an input has fewer tokens.
        position: the token whose row is read, among the real tokens (negative from the end) or, where inputs are no
            tokens, among the positions of the model. None is the last where attention is causal, and otherwise the
            first, at which encoders answer.
        places: whether the weights by place, counted from the last token, are columns too; what lies further from it
            than any trusted token is added up.

    Columns are, for every head, the ``top`` weights (0 to 1), the entropy (nats), and with ``places`` the weights by
    place.

    References:
        The attention of the last token as features: the detectors of mechanism distinction by Hilton and by Taylor
        (unpublished). Sorted rows, which do not depend on places: of this project.
    """

    top: int = 8
    position: int | None = None
    places: bool = False

    def __post_init__(self) -> None:
        require_options(self)
        if self.top < 1:
            raise FitError(f"top={self.top}", needed="at least 1")

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedAttentionPatterns:
        """Count the heads, and the tokens of the longest trusted input.

        Raises:
            SiteError: for a model without attention that can be laid open.
            FitError: without trusted inputs.
        """
        require_inputs(trusted)
        with attending(model) as seen:
            (batch,) = seen.model.batches(trusted[:1])
            found = seen.model.run(batch, read=[layer.pattern for layer in seen.layers], output=False).values
            shapes = [found[layer.pattern].shape for layer in seen.layers]
            longest = int(trusted.lengths.max()) if trusted.tokens else int(shapes[0][-1])
            heads = [f"{layer.path}.{h}" for layer, s in zip(seen.layers, shapes, strict=True) for h in range(s[1])]
            columns = self._columns(heads, [str(site) for site in model.sites("heads")], longest)
        return FittedAttentionPatterns(self, model, longest, columns)

    def restore(self, model: OpenModel, state: State) -> FittedAttentionPatterns:
        """The fitted signature that wrote ``state``."""
        return FittedAttentionPatterns(
            self, model, int(state.data["longest"]), columns_from_data(state.data["columns"])
        )

    def _columns(self, heads: Sequence[str], sites: Sequence[str], longest: int) -> tuple[Column, ...]:
        ranks = [f"rank {i + 1}" for i in range(self.top)]
        places = [*(f"@-{i + 1}" for i in range(longest)), "beyond"] if self.places else []
        found = []
        for head, site in zip(heads, sites, strict=True):
            name = f"attention {head}"
            found += [Column(f"{name} {rank}", site, rank, block="attention by rank") for rank in ranks]
            found.append(Column(f"{name} entropy", site, "entropy", block="attention entropy"))
            found += [Column(f"{name} {at}", site, position=at, block="attention by place") for at in places]
        return tuple(found)


@dataclass(frozen=True, eq=False)
class FittedAttentionPatterns:
    """Attention patterns of one model."""

    spec: AttentionPatterns
    model: OpenModel
    longest: int
    columns: tuple[Column, ...]

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) weights and entropies; one forward pass."""
        known = self.model.inputs(inputs)
        with attending(self.model) as seen:

            def rows(batch: Batch) -> Tensor:
                found = seen.model.run(batch, read=[layer.pattern for layer in seen.layers], output=False).values
                parts = [self._layer(found[layer.pattern], batch, layer.causal) for layer in seen.layers]
                return torch.cat(parts, 1)

            return signatures(known, self.columns, table(seen.model, known, len(self.columns), rows))

    def state(self) -> State:
        """The columns, and the tokens of the longest trusted input."""
        return State({}, {"longest": self.longest, "columns": columns_to_data(self.columns)})

    def _layer(self, pattern: Tensor, batch: Batch, causal: bool) -> Tensor:
        """(batch, heads times numbers) of a layer's weights (batch, heads, positions, positions)."""
        weights = pattern[torch.arange(len(batch), device=pattern.device), :, self._row(pattern, batch, causal)]
        weights = weights.double()
        width = weights.shape[-1]
        ranked = weights.sort(-1, descending=True).values[..., : self.spec.top]
        ranked = torch.nn.functional.pad(ranked, (0, max(self.spec.top - width, 0)))
        entropy = torch.special.entr(weights).sum(-1, keepdim=True)
        parts = [ranked, entropy]
        if self.spec.places:
            back = torch.arange(width, device=weights.device).flip(0).expand(len(batch), -1)
            back = back if batch.mask is None else from_end(batch.mask).to(weights.device)
            # Padding has no weight: wherever it is added, it adds nothing.
            index = back.clamp(0, self.longest)[:, None].expand_as(weights)
            placed = weights.new_zeros(*weights.shape[:2], self.longest + 1)
            parts.append(placed.scatter_add(-1, index, weights))
        return torch.cat(parts, -1).flatten(1)

    def _row(self, pattern: Tensor, batch: Batch, causal: bool) -> Tensor:
        """(batch,) whose weights are read."""
        position = self.spec.position
        if position is None:
            position = -1 if causal else 0
        if batch.mask is not None:
            return position_index(position, batch).to(pattern.device)
        if not -pattern.shape[-1] <= position < pattern.shape[-1]:
            raise FitError(f"position={position} of {pattern.shape[-1]}", needed="a position that the model has")
        return torch.full((len(batch),), position % pattern.shape[-1], device=pattern.device)
