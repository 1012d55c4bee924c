"""Gram deviation: whether features occur together as they do for trusted inputs of the predicted class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.signatures.base import Column, Signatures, State, require_inputs, signatures
from causalmad.signatures.kept import distinct, own_rows
from causalmad.signatures.table import table
from causalmad.sites import Site

_FOLDS = 5
_ANY = -1  # stands for all classes
# Divisors are at least these shares of the mean size of a matrix's trusted entries: a unit that is off for most inputs
# has a bound and a spread of zero, and would alone decide what the mean over all entries is.
_FLOOR_OF_BOUNDS, _FLOOR_OF_SPREADS = 0.1, 0.01


@dataclass(frozen=True)
class GramDeviation:
    """Higher-order Gram matrices of the features, against the bounds of the predicted class (Beatrix).

    Args:
        sites: role, path, glob or a list of them; ``auto`` is the residual stream after every block of a known
            architecture, and every nonlinear layer of any other module.
        orders: Gram matrices of orders 1 to this one.
        width: half the width of the bounds, in median absolute deviations.
        least: predicted classes with fewer trusted inputs are held against the bounds of all of them together.
        most: how many trusted inputs the bounds stand on, of distinct content, drawn by seed.
        most_features: sites with more features are read at this many of them, drawn by seed.

    At a site with features F (features, positions), the real tokens only (all places of an image; a single one for
    vectors; `Activations` says which axis is which), the matrix of order p is F^p (F^p)^T over the number of positions,
    entry by entry signed and to the power 1/p; of its upper triangle with the diagonal every entry has a trusted median
    m and median absolute deviation s. With a single position all odd orders are the same, and so are all even ones:
    vectors have orders 1 and 2 only.

    Columns, per site and order: ``exceedance``, the published score, the mean over entries of how far an entry lies
    outside of m +- width * s, over the size of the bound that it exceeds; and ``distance``, the mean over entries of
    log(1 + |entry - m| / s), which unlike the first is not zero for most trusted inputs. Divisors near zero are raised
    to the entry's own scale: a bound's size to half the width of the bounds, s to a thousandth of |m|; and to a tenth
    and a hundredth of the mean size of all trusted entries of that matrix.

    Bounds fit the trusted inputs from which they come better than new ones. So the trusted inputs are dealt into five
    folds, and an input that is among them is held against the bounds of the other four.

    Memory: while fitting, (trusted inputs, all entries) in single precision; then three numbers per entry, fold and
    class.

    References:
        Beatrix: Ma et al. 2023, arXiv 2209.11715.
    """

    sites: str | tuple[str, ...] = "auto"
    orders: int = 4
    width: float = 10.0
    least: int = 10
    most: int = 1000
    most_features: int = 64

    def __post_init__(self) -> None:
        require_options(self)
        if min(self.orders, self.least, self.most_features) < 1 or self.width <= 0 or self.most < 2:
            options = f"orders={self.orders}, width={self.width}, least={self.least}, most={self.most}"
            raise FitError(f"{options}, most_features={self.most_features}", needed="positive numbers, most >= 2")

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedGramDeviation:
        """Take the bounds from the trusted inputs; one forward pass over them.

        Raises:
            FitError: when there are fewer than 2 distinct inputs.
            SiteError: when a site does not exist.
        """
        require_inputs(trusted)
        wanted = ("residual" if model.architecture else "layers") if self.sites == "auto" else self.sites
        sites = model.sites(wanted)
        kept = distinct(trusted, self.most, seed)
        reader = self._reader(model, sites, kept, seed)
        values = np.empty((len(kept), reader.entries), np.float32)
        answers = np.empty(len(kept), np.int64)
        with model.quiet():
            for batch in model.batches(kept):
                found = reader.rows(model, batch).numpy()
                values[batch.rows], answers[batch.rows] = found[:, :-1], found[:, -1]
        folds = np.random.default_rng([seed, 4]).permutation(np.arange(len(kept)) % _FOLDS)
        bounds = _bounds(values, answers, folds, self.least)
        return FittedGramDeviation(self, model, reader, kept.digests, folds, bounds)

    def restore(self, model: OpenModel, state: State) -> FittedGramDeviation:
        """The fitted signature that wrote ``state``."""
        tensors, data = state.tensors, state.data
        sites = tuple(model.sites(str(text))[0] for text in data["sites"])
        features = tuple(tensors[f"features:{i}"] for i in range(len(sites)))
        reader = _Reader(sites, features, tuple(map(int, data["orders"])))
        bounds = {int(answer): tensors[f"bounds:{answer}"].numpy() for answer in data["answers"]}
        return FittedGramDeviation(self, model, reader, tuple(data["digests"]), tensors["folds"].numpy(), bounds)

    def _reader(self, model: OpenModel, sites: tuple[Site, ...], inputs: Inputs, seed: int) -> _Reader:
        (batch,) = model.batches(inputs[:1])
        run = model.run(batch, read=list({site.place: None for site in sites}))
        draw = np.random.default_rng([seed, 5])
        features, orders = [], []
        for site in sites:
            width = _matrix(run.values[site.place], site, batch)[0].shape[1]
            features.append(torch.from_numpy(np.sort(draw.permutation(width)[: self.most_features])))
            vector = site.take(run.values[site.place], batch).ndim < 3
            orders.append(min(self.orders, 2) if vector else self.orders)
        return _Reader(sites, tuple(features), tuple(orders))


@dataclass(frozen=True, eq=False)
class FittedGramDeviation:
    """Bounds of Gram matrices of one model.

    Attributes:
        spec: what was fitted.
        model: the model.
        reader: computes the entries.
        digests: contents of the trusted inputs on which the bounds stand.
        folds: (trusted,) fold of each of them.
        bounds: predicted class (-1: all) -> (folds + 1, 3, entries) medians, median absolute deviations and mean
            sizes without each fold, and of all.
    """

    spec: GramDeviation
    model: OpenModel
    reader: _Reader
    digests: tuple[str, ...]
    folds: npt.NDArray[np.int64]
    bounds: Mapping[int, npt.NDArray[np.float32]]

    @property
    def columns(self) -> tuple[Column, ...]:
        """Two numbers per site and order."""
        return tuple(
            Column(f"{site} order {order} {kind}", str(site), f"order {order}", "", kind)
            for site, orders in zip(self.reader.sites, self.reader.orders, strict=True)
            for order in range(1, orders + 1)
            for kind in ("exceedance", "distance")
        )

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) mean deviations; one forward pass."""
        known = self.model.inputs(inputs)
        own = own_rows(known, self.digests)
        folds = np.where(own >= 0, self.folds[own], _FOLDS)

        def rows(batch: Batch) -> Tensor:
            return self.deviations(self.model, batch, folds[batch.rows])

        return signatures(known, self.columns, table(self.model, known, len(self.columns), rows))

    def deviations(self, model: OpenModel, batch: Batch, folds: npt.NDArray[np.int64] | None = None) -> Tensor:
        """(batch, d) columns of a batch, in double precision; with a graph where the model's runs keep theirs.

        Args:
            model: the one that is run, perhaps with other parameters than the one on which the bounds stand.
            batch: the inputs.
            folds: (batch,) which bounds count for each: those without this fold. By default, as for inputs that are not
                trusted, those of all folds.
        """
        found = self.reader.rows(model, batch)
        chosen = np.full(len(found), _FOLDS) if folds is None else folds
        return self._deviations(found[:, :-1], found[:, -1].long(), chosen)

    def state(self) -> State:
        """The bounds, the folds and which inputs they stand on, the features that are read."""
        tensors = {f"bounds:{answer}": torch.from_numpy(found) for answer, found in self.bounds.items()}
        tensors |= {f"features:{i}": found for i, found in enumerate(self.reader.features)}
        tensors["folds"] = torch.from_numpy(self.folds)
        data = {
            "sites": [str(site) for site in self.reader.sites],
            "orders": list(self.reader.orders),
            "digests": list(self.digests),
            "answers": sorted(self.bounds),
        }
        return State(tensors, data)

    def _deviations(self, values: Tensor, answers: Tensor, folds: npt.NDArray[np.int64]) -> Tensor:
        """(batch, columns) from entries (batch, entries)."""
        chosen = [
            self.bounds.get(int(answer), self.bounds[_ANY])[fold] for answer, fold in zip(answers, folds, strict=True)
        ]
        both = torch.from_numpy(np.stack(chosen)).double()
        found = []
        for start, stop in self.reader.spans:
            entry, middle, spread = values[:, start:stop], both[:, 0, start:stop], both[:, 1, start:stop]
            scale = both[:, 2, start:stop].mean(1, keepdim=True)
            scale = torch.where(scale > 0, scale, 1.0)  # a matrix of zeros, as of units that are always off
            size, half = (entry - middle).abs(), self.spec.width * spread
            bound = (middle + half * torch.sign(entry - middle)).abs()
            outside = (size - half).clamp(min=0) / torch.maximum(torch.maximum(bound, half), _FLOOR_OF_BOUNDS * scale)
            unit = torch.maximum(torch.maximum(spread, 1e-3 * middle.abs()), _FLOOR_OF_SPREADS * scale)
            found += [outside.mean(1), torch.log1p(size / unit).mean(1)]
        return torch.stack(found, 1)


@dataclass(frozen=True, eq=False)
class _Reader:
    """Entries of Gram matrices: every site in turn, every order in turn, the upper triangle with the diagonal."""

    sites: tuple[Site, ...]
    features: tuple[Tensor, ...]
    orders: tuple[int, ...]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Where the entries of each site and order are."""
        counts = zip(self.features, self.orders, strict=True)
        sizes = [len(features) * (len(features) + 1) // 2 for features, orders in counts for _ in range(orders)]
        stops = np.cumsum(sizes).tolist()
        return list(zip([0, *stops[:-1]], stops, strict=True))

    @property
    def entries(self) -> int:
        """How many there are in all."""
        return self.spans[-1][1]

    def rows(self, model: OpenModel, batch: Batch) -> Tensor:
        """(batch, entries + 1) entries, then the predicted class, in double precision on the CPU."""
        run = model.run(batch, read=list({site.place: None for site in self.sites}))
        if run.logits is None:
            raise FitError("the run gave no logits")
        found = []
        for site, features, orders in zip(self.sites, self.features, self.orders, strict=True):
            matrix, count = _matrix(run.values[site.place], site, batch)
            picked = matrix[:, features.to(matrix.device)].double()
            upper = torch.triu_indices(len(features), len(features), device=matrix.device)
            for order in range(1, orders + 1):
                power = picked**order
                gram = (power @ power.mT)[:, upper[0], upper[1]] / count[:, None]
                found.append(_root(gram, order))
        entries = torch.cat(found, 1).cpu()
        if not bool(torch.isfinite(entries).all()):
            raise FitError("NaN or infinite activations", causes=["NaN in the inputs", "overflow in half precision"])
        return torch.cat([entries, run.logits.argmax(-1).cpu().double()[:, None]], 1)


def _root(gram: Tensor, order: int) -> Tensor:
    """The entries, signed and to the power 1/order.

    At zero, as of units that are off, a root has an infinite slope; it counts as none, for those who differentiate.
    """
    if order == 1:
        return gram
    off = gram == 0
    return torch.where(off, 0.0, gram.sign() * torch.where(off, 1.0, gram.abs()) ** (1 / order))


def _matrix(value: Tensor, site: Site, batch: Batch) -> tuple[Tensor, Tensor]:
    """(batch, features, positions) of an activation, zero where there is no token, and (batch,) how many there are."""
    part = site.take(value, batch)
    axis = site.channel_axis(part.ndim)
    if batch.mask is not None and part.ndim > 2:  # positions before features, as in transformers
        part = part.flatten(2).mT
    elif axis is not None:
        part = part.movedim(axis, 1)
    part = part.flatten(2) if part.ndim > 2 else part.reshape(len(batch), -1, 1)
    count = torch.full((len(batch),), part.shape[2], device=part.device)
    if batch.mask is not None and part.shape[2] == batch.mask.shape[1] > 1:
        part, count = part.masked_fill(~batch.mask[:, None], 0), batch.mask.sum(1)
    return part, count


def _bounds(
    values: npt.NDArray[np.float32], answers: npt.NDArray[np.int64], folds: npt.NDArray[np.int64], least: int
) -> dict[int, npt.NDArray[np.float32]]:
    """Class -> (folds + 1, 3, entries) exact medians, median absolute deviations and mean sizes."""
    known, counts = np.unique(answers, return_counts=True)
    found: dict[int, npt.NDArray[np.float32]] = {}
    for answer in [_ANY, *known[counts >= least].tolist()]:
        rows = np.full(len(answers), True) if answer == _ANY else answers == answer
        parts = []
        for fold in range(_FOLDS + 1):
            # A fold that holds all of the rows cannot be left out.
            part = values[rows & (folds != fold)] if (rows & (folds != fold)).any() else values[rows]
            middle = np.median(part, axis=0)
            spread = np.median(np.abs(part - middle), axis=0)
            parts.append(np.stack([middle, spread, np.abs(part).mean(axis=0, dtype=np.float64)]))
        found[int(answer)] = np.stack(parts).astype(np.float32)
    return found
