"""Baselines: what every activation is compared with when a contribution is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from causalmad.errors import FitError
from causalmad.hypotheses import Donors
from causalmad.hypotheses.donors import align, from_end
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.signatures.effects import captured, donor_batch
from causalmad.signatures.units import Group
from causalmad.sites import Place, require_rows

KINDS = ("mean", "zero", "donors", "positions", "components")

# Tokens (or inputs) whose activations the principal components are taken from, about; more would only fill memory.
_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Baseline:
    """What every activation is compared with; nothing at all means zero.

    Attributes:
        means: place -> trusted mean, (...) of one token where there are tokens and (...) of one row otherwise.
        positions: place -> (longest + 1, ...) trusted means by distance from the last real token; the last is the mean
            over all tokens, for positions that no trusted input has.
        bases: place -> (parts, components, features) orthonormal directions, zeros where there are fewer: only what an
            activation has along them is moved to the mean. The parts are the heads where there are heads.
        donors: trusted inputs whose activations are the baseline, or None.
        donor_values: place -> (donors, ...) the donors' activations.
        donor_mask: (donors, positions) the donors' real tokens.
    """

    means: Mapping[Place, Tensor] = field(default_factory=dict)
    positions: Mapping[Place, Tensor] = field(default_factory=dict)
    bases: Mapping[Place, Tensor] = field(default_factory=dict)
    donors: Donors | None = None
    donor_values: Mapping[Place, Tensor] | None = None
    donor_mask: Tensor | None = None

    @property
    def zero(self) -> bool:
        """Whether every activation is compared with nothing."""
        return not self.means and not self.positions and self.donors is None

    @classmethod
    def fit(
        cls,
        model: OpenModel,
        trusted: Inputs,
        kind: str,
        places: Mapping[Place, int],
        *,
        donors: int = 4,
        components: int = 10,
        seed: int = 0,
    ) -> Baseline:
        """The baseline of a kind, taken from trusted inputs.

        Args:
            model: the opened model.
            trusted: inputs on which it behaves normally.
            kind: one of :data:`KINDS`.
            places: where it is wanted -> in how many equal parts (heads) the features fall there.
            donors: how many, for donors.
            components: how many principal components, for components.
            seed: which inputs are drawn.

        Raises:
            FitError: when there are too few trusted inputs for donors, or their activations are not finite.
            SiteError: where the axes of an activation do not run over the inputs and their tokens.
        """
        if kind == "zero":
            return cls()
        if kind == "donors":
            return cls.of_donors(model, Donors.draw(trusted, donors, seed), tuple(places))
        if kind == "positions" and trusted.tokens:
            return cls(positions=_means(model, trusted, tuple(places), by_position=True))
        # A row that is no sequence of tokens has a mean of its own for every entry, wherever it is.
        means = _means(model, trusted, tuple(places), by_position=False)
        bases = _bases(model, _some(trusted, seed), places, components, seed) if kind == "components" else {}
        return cls(means=means, bases=bases)

    @classmethod
    def of_donors(cls, model: OpenModel, donors: Donors, places: Sequence[Place]) -> Baseline:
        """The donors' own activations, computed once."""
        batch = donor_batch(model, donors)
        return cls(donors=donors, donor_values=captured(model, batch, places), donor_mask=batch.mask)

    def each(self, place: Place, value: Tensor, batch: Batch, which: Tensor | None) -> list[Tensor]:
        """The baselines of an activation (batch, ...): one, or one for every donor.

        Args:
            place: where the activation is.
            value: the activation itself.
            batch: the inputs.
            which: (batch, donors) the donors of every input, for a baseline of donors.
        """
        if self.donors is not None and self.donor_values is not None and which is not None:
            columns = which.unbind(1)
            return [align(self.donor_values[place], self.donor_mask, column, batch).to(value) for column in columns]
        if place in self.positions and batch.mask is not None:
            table = self.positions[place].to(value)
            return [table[from_end(batch.mask).clamp(0, len(table) - 1)]]
        if place not in self.means:
            return [torch.zeros_like(value)]
        mean = self.means[place].to(value).expand_as(value)
        return [_moved(value, mean, self.bases[place].to(value)) if self.bases else mean]

    def pack(self, places: Sequence[Place]) -> tuple[dict[str, Tensor], Any]:
        """Tensors and plain data for a file; :meth:`unpack` is the way back."""
        tables = {"mean": self.means, "position": self.positions, "basis": self.bases}
        tensors = {
            f"{name}:{i}": table[place] for name, table in tables.items() for i, place in enumerate(places) if table
        }
        if self.donors is None:
            return tensors, None
        fields, data = self.donors.pack()
        return {**tensors, **{f"donors:{key}": value for key, value in fields.items()}}, data

    @classmethod
    def unpack(cls, model: OpenModel, tensors: Mapping[str, Tensor], data: Any, places: Sequence[Place]) -> Baseline:
        """The baseline that :meth:`pack` wrote, for the same places in the same order."""
        if data is not None:
            fields = {key.removeprefix("donors:"): value for key, value in tensors.items() if key.startswith("donors:")}
            return cls.of_donors(model, Donors.unpack(fields, data), places)

        def table(name: str) -> dict[Place, Tensor]:
            return {place: tensors[f"{name}:{i}"] for i, place in enumerate(places) if f"{name}:{i}" in tensors}

        return cls(table("mean"), table("position"), table("basis"))


def parts(groups: Sequence[Group], places: Mapping[str, Sequence[Place]]) -> dict[Place, int]:
    """Place -> the number of heads where its features are heads, otherwise 1."""
    found = {place: 1 for each in places.values() for place in each}
    for group in groups:
        found |= {site.place: site.head_count for site in group.sites if site.heads and site.head_count}
    return found


def _means(model: OpenModel, trusted: Inputs, places: Sequence[Place], *, by_position: bool) -> dict[Place, Tensor]:
    """Trusted means over inputs and real tokens; by position a row for every distance from the end, and for all."""
    longest = int(trusted.lengths.max()) if by_position else 0
    counts = torch.zeros(longest + 1, dtype=torch.float64)
    sums: dict[Place, Tensor] = {}
    for batch in model.batches(trusted):
        values = model.run(batch, read=places, output=False).values
        here = torch.zeros(len(batch), dtype=torch.long) if batch.mask is None else from_end(batch.mask)[batch.mask]
        here = here.cpu().clamp(max=longest)
        counts.index_add_(0, here, torch.ones(len(here), dtype=torch.float64))
        for place, value in values.items():
            kept = _real(value, place, batch).double().cpu()
            total = sums.setdefault(place, torch.zeros(longest + 1, *kept.shape[1:], dtype=torch.float64))
            total.index_add_(0, here, kept)
    if not by_position:
        return {place: (sums[place][0] / counts[0]).float() for place in places}
    counts[-1] = counts.sum()
    found = {}
    for place in places:
        sums[place][-1] = sums[place].sum(0)
        found[place] = (sums[place] / counts.reshape(-1, *[1] * (sums[place].ndim - 1))).float()
    return found


def _real(value: Tensor, place: Place, batch: Batch) -> Tensor:
    """(tokens, ...) what an activation holds at the real tokens of all inputs; itself where they are none."""
    require_rows(value, place, batch, tokens=True)
    return value if batch.mask is None else value[batch.mask]


def _some(trusted: Inputs, seed: int) -> Inputs:
    """Trusted inputs in an order that only their contents and the seed decide, enough for the components."""
    rows = np.argsort(np.array(trusted.digests), kind="stable")
    rows = np.random.default_rng([seed, 2]).permutation(rows)
    sizes = trusted.lengths[rows] if trusted.tokens else np.ones(len(rows), dtype=np.int64)
    return trusted[rows[: int(np.searchsorted(sizes.cumsum(), _ROWS)) + 1]]


def _bases(
    model: OpenModel, trusted: Inputs, places: Mapping[Place, int], components: int, seed: int
) -> dict[Place, Tensor]:
    kept: dict[Place, list[Tensor]] = {place: [] for place in places}
    for batch in model.batches(trusted):
        for place, value in model.run(batch, read=tuple(places), output=False).values.items():
            kept[place].append(_real(value, place, batch).flatten(1).cpu())
    found = {}
    for place, count in places.items():
        rows = torch.cat(kept.pop(place)).double().unflatten(-1, (count, -1))
        if not bool(torch.isfinite(rows).all()):
            raise FitError(
                f"trusted activations at {str(place) or 'the input'} are NaN or infinite: they have no components",
                causes=["NaN in the inputs or in the weights", "overflow in half precision"],
                tries=["drop the inputs", "model.float()"],
            )
        found[place] = torch.stack([_principal(part.numpy(), components, seed) for part in rows.unbind(1)]).float()
    return found


def _principal(rows: np.ndarray[Any, np.dtype[np.float64]], components: int, seed: int) -> Tensor:
    """(components, features) principal directions of rows (n, features), zeros where the rows vary in fewer."""
    width = min(components, rows.shape[1])
    found = torch.zeros(width, rows.shape[1], dtype=torch.float64)
    spread = np.square(rows - rows.mean(0)).sum()
    if spread <= 1e-12 * np.square(rows).sum():  # rounding, or no variation at all
        return found
    # scikit-learn takes no larger seeds
    pca = PCA(min(width, len(rows)), random_state=seed % 2**32).fit(rows)
    real = pca.explained_variance_ > 1e-12 * pca.explained_variance_[0]
    found[: int(real.sum())] = torch.from_numpy(pca.components_[real])
    return found


def _moved(value: Tensor, mean: Tensor, basis: Tensor) -> Tensor:
    """``value`` with what it has along the directions moved to what the mean has; the rest stays as it is."""
    lead = value.ndim - _axes(value, basis)
    away = (value - mean).flatten(lead).unflatten(-1, (basis.shape[0], -1))
    along = torch.einsum("...pk,pkf->...pf", torch.einsum("...pf,pkf->...pk", away, basis), basis)
    return value - along.reshape(value.shape)


def _axes(value: Tensor, basis: Tensor) -> int:
    """How many trailing axes hold the features that the directions run over."""
    features = basis.shape[0] * basis.shape[2]
    return next(n for n in range(1, value.ndim) if value.shape[value.ndim - n :].numel() == features)
