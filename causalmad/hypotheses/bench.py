"""The bench: runs chosen inputs with parts of their activations replaced by others' and reads what comes out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.errors import HypothesisError
from causalmad.hypotheses.donors import align
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.models.clean import Clean
from causalmad.models.padding import one_batch
from causalmad.models.shortcuts import EditBatch, Patch, Shortcuts
from causalmad.models.state import version
from causalmad.sites import Place, Site, position_index

Rows = npt.NDArray[np.int64]

_MOST = 2**26  # numbers of a pool's clean run that are held


@dataclass(frozen=True)
class Held:
    """Values at a site for some jobs.

    Attributes:
        values: (inputs, features) at a position, otherwise (inputs, positions, features).
        masks: (inputs, positions) real tokens of where the values come from; None without tokens.
        rows: (jobs,) the input of every job; None for one job an input. Nothing is copied before it is asked for, since
            many jobs share few inputs.
    """

    values: Tensor
    masks: Tensor | None
    rows: Rows | None = None

    @property
    def value(self) -> Tensor:
        """(jobs, ...) the values of every job."""
        return self.values if self.rows is None else self.values[torch.as_tensor(self.rows, device=self.values.device)]

    @property
    def mask(self) -> Tensor | None:
        """(jobs, positions) real tokens of every job."""
        if self.masks is None or self.rows is None:
            return self.masks
        return self.masks[torch.as_tensor(self.rows, device=self.masks.device)]

    def take(self, rows: Rows) -> Held:
        """The values of some jobs, as often as they are named."""
        return Held(self.values, self.masks, rows if self.rows is None else self.rows[rows])


@dataclass(frozen=True, eq=False)
class Bench:
    """A model, and inputs that it may be run on any number of times.

    Attributes:
        model: the opened model.
        pool: all inputs as one batch.
        shortcuts: runs from the first edited place on; None where the pool is run on too seldom for its own clean run.
        held: the clean run of the pool, and the weights of which it is.
    """

    model: OpenModel
    pool: Batch
    shortcuts: Shortcuts | None = None
    held: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: OpenModel, inputs: Inputs, patched: Iterable[Site] = ()) -> Bench:
        """A bench with these inputs.

        Args:
            model: the opened model.
            inputs: the pool.
            patched: where runs will be patched, each input being run several times: these runs then go on from a clean
                one of the pool.

        Raises:
            HypothesisError: when they differ in length and the model takes no attention mask, or ignores it.
        """
        pool = one_batch(model, inputs, error=HypothesisError)
        places = list(dict.fromkeys(site.place for site in patched))
        return cls(model, pool, Shortcuts(model, places) if places else None)

    def run(
        self,
        rows: Rows,
        patches: Mapping[Site, Held] | None = None,
        read: Sequence[Site] = (),
        *,
        output: bool = True,
        keep: Sequence[Site] = (),
    ) -> tuple[Tensor, dict[Site, Held]]:
        """Logits (jobs, classes) and values at the sites to read, each job with its own patches.

        Args:
            rows: (jobs,) which input each job runs.
            patches: site -> values of all jobs that take its place there.
            read: sites to read.
            output: whether the logits are wanted; otherwise they are empty.
            keep: sites that stay as the run computes them where a patch would cover them.
        """
        known = patches or {}
        places = list(dict.fromkeys(site.place for site in read))
        whole = not known and len(rows) == len(self.pool) and bool((rows == np.arange(len(rows))).all())
        with self.model.quiet():
            clean = self._clean(places if whole else ()) if known or whole else None
            if clean is not None and whole:
                values = {site: Held(site.take(clean.values[site.place], self.pool), self.pool.mask) for site in read}
                return clean.logits if output else torch.empty(0), values
            parts = self._plain_parts(rows) if clean is None else self._late_parts(rows, tuple(known), bool(read))
            logits, found, order = list[Tensor](), {site: list[Held]() for site in read}, list[Rows]()
            for part, column in parts:
                mine = {site: held.take(part) for site, held in known.items()}
                batch = self.pool.take(rows[part])
                if clean is None or self.shortcuts is None:
                    run = self.model.run(batch, read=places, edits=_edits(mine, keep, batch), output=output)
                else:
                    index, edit = torch.as_tensor(rows[part]), _editing(mine, keep, batch)
                    run = self.shortcuts.run(clean, index, edit, column, read=places, output=output)
                order.append(part)
                logits.append(torch.empty(0) if run.logits is None or not output else run.logits)
                for site in read:
                    found[site].append(Held(site.take(run.values[site.place], batch), batch.mask))
        back = np.argsort(np.concatenate(order), kind="stable")
        joined = {site: _join(held, back) for site, held in found.items()}
        if not output:
            return torch.empty(0), joined
        everything = torch.cat(logits)
        return everything[torch.as_tensor(back, device=everything.device)], joined

    def _plain_parts(self, rows: Rows) -> Iterator[tuple[Rows, int]]:
        for part in np.array_split(np.arange(len(rows)), max(-(-len(rows) // self.model.batching.stack), 1)):
            yield part, 0

    def _late_parts(self, rows: Rows, sites: Sequence[Site], reading: bool) -> Iterator[tuple[Rows, int]]:
        """Jobs that share a run, and the first column that their patches change: those that change few together."""
        width = self.pool.main.shape[-1]
        first = np.zeros(len(rows), dtype=np.int64)
        if self.pool.mask is not None and not reading and all(_single(site.position) for site in sites):
            used, where = np.unique(rows, return_inverse=True)
            batch = self.pool.take(used)
            starts = [position_index(site.position, batch) for site in sites if site.position is not None]
            first = torch.stack(starts).amin(0).cpu().numpy()[where]
        order = np.argsort(first, kind="stable")
        if self.shortcuts is None or not len(rows):
            yield order, 0
            return
        for part in self.shortcuts.stacks(torch.as_tensor(width - first[order])):
            jobs = order[part.numpy()]
            yield jobs, int(first[jobs].min())

    def _clean(self, read: Sequence[Place] = ()) -> Clean | None:
        """The clean run of the pool; None where there is none to go on from, or it lacks what is to be read.

        All of the pool or nothing: what a run needs of it is not known before, and jobs draw their rows at random. It
        is made once, by the pool's own first run where there is one, and held for as long as the bench. A pool of which
        this would be too many numbers is run whole each time.
        """
        if self.shortcuts is None or not self.shortcuts.usable or not len(self.pool):
            return None
        weights = [_state(value) for value in self.model.module.parameters()]
        if self.held.get("weights") != weights:
            one = self.shortcuts.clean(self.pool.take(np.arange(1)))
            self.held.update(weights=weights, clean=None)
            if self.shortcuts.usable and one.numbers * len(self.pool) <= _MOST:
                clean = self.shortcuts.clean(self.pool, read, size=self.model.batching.stack)
                self.held["clean"] = replace(clean, values={})
                return clean
        found: Clean | None = self.held["clean"]
        return None if read else found


def _state(value: Tensor) -> tuple[int, int]:
    """What changes when a parameter is written or replaced."""
    try:
        return value.data_ptr(), version(value)
    except (RuntimeError, NotImplementedError):  # tensors without storage of their own
        return id(value), 0


def _single(position: int | str | None) -> bool:
    """Whether this is one position, into which something can be put."""
    return position is not None and not (isinstance(position, str) and position.partition(":")[0] == "all")


def _editing(patches: Mapping[Site, Held], keep: Sequence[Site], whole: Batch) -> EditBatch:
    """The edits of some jobs, for all columns of their rows or the last ones."""

    def edit(batch: Batch) -> tuple[Batch, dict[Place, Patch]]:
        return batch, _edits(patches, keep, batch, whole)

    return edit


def _edits(
    patches: Mapping[Site, Held], keep: Sequence[Site], batch: Batch, whole: Batch | None = None
) -> dict[Place, Patch]:
    """One edit for every place, which puts in the values of all sites there, but for what is kept.

    Args:
        patches: site -> values of all jobs.
        keep: sites that stay as they are.
        batch: the jobs' rows.
        whole: the same with all their columns, where some may be missing.
    """
    by_place: dict[Place, list[tuple[Site, Held]]] = {}
    for site, held in patches.items():
        by_place.setdefault(site.place, []).append((site, held))
    view = _View.of(batch, batch if whole is None else whole, (*patches, *keep))

    def editor(place: Place, members: list[tuple[Site, Held]]) -> Patch:
        def edit(value: Tensor) -> Tensor:
            view.require(value)
            own = {site: view.take(site, value) for site in keep if site.place == place}
            for site, held in members:
                value = view.put(site, value, fitting(site, held, batch))
            for site, kept in own.items():
                value = view.put(site, value, kept)
            return value

        return edit

    return {place: editor(place, members) for place, members in by_place.items()}


@dataclass(frozen=True, eq=False)
class _View:
    """Sites in the last columns of some rows.

    Attributes:
        batch: these columns, with a column of positions for every position that was asked for.
        names: position -> name of its column; empty where no columns are missing.
        here: position -> (batch,) whether it lies in these columns.
    """

    batch: Batch
    names: Mapping[int | str, str]
    here: Mapping[int | str, Tensor]

    @classmethod
    def of(cls, batch: Batch, whole: Batch, sites: Sequence[Site]) -> _View:
        missing = whole.main.shape[-1] - batch.main.shape[-1] if batch.mask is not None else 0
        if not missing or batch.mask is None:
            return cls(batch, {}, {})
        names, here, columns = dict[int | str, str](), dict[int | str, Tensor](), dict(batch.columns)
        for position in dict.fromkeys(site.position for site in sites):
            if position is not None and _single(position):
                index = position_index(position, whole) - missing
                names[position], here[position] = f"{position} in what is left", index >= 0
                # Positions are counted from the first real token that is left.
                count = index.clamp(min=0) - batch.mask.long().argmax(-1)
                columns[names[position]] = count.cpu().numpy()
        return cls(replace(batch, columns=columns), names, here)

    def require(self, value: Tensor) -> None:
        """Refuses what has no axis of columns where the columns that are missing are to be left out."""
        if self.here and (value.ndim != 3 or value.shape[1] != self.batch.main.shape[1]):
            raise HypothesisError(f"an activation of shape {tuple(value.shape)} has no axis of positions")

    def take(self, site: Site, value: Tensor) -> Tensor:
        return self._site(site).take(value, self.batch)

    def put(self, site: Site, value: Tensor, new: Tensor) -> Tensor:
        if site.position is not None and site.position in self.here:
            # A position that is left out has no part in what is left.
            here = self.here[site.position].to(value.device)
            new = torch.where(here.reshape(-1, *[1] * (new.ndim - 1)), new, self.take(site, value).to(new.dtype))
        return self._site(site).put(value, new, self.batch)

    def _site(self, site: Site) -> Site:
        return site if site.position is None else site.at(self.names.get(site.position, site.position))


def fitting(site: Site, held: Held, batch: Batch) -> Tensor:
    """Values of whole sequences, moved so that their last real tokens meet the batch's."""
    if site.position is not None or held.mask is None or held.value.ndim < 3:
        return held.value
    return align(held.value, held.mask, torch.arange(len(batch), device=held.value.device), batch)


def _join(parts: Sequence[Held], order: Rows) -> Held:
    masks = [part.mask for part in parts if part.mask is not None]
    values, index = torch.cat([part.value for part in parts]), torch.as_tensor(order)
    mask = torch.cat(masks)[index.to(masks[0].device)] if masks else None
    return Held(values[index.to(values.device)], mask)
