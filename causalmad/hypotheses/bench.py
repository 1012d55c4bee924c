"""The bench: runs chosen inputs with parts of their activations replaced by others' and reads what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.errors import HypothesisError
from causalmad.hypotheses.donors import align
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.models.padding import one_batch
from causalmad.sites import Place, Site

Rows = npt.NDArray[np.int64]


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
    """

    model: OpenModel
    pool: Batch

    @classmethod
    def of(cls, model: OpenModel, inputs: Inputs) -> Bench:
        """A bench with these inputs.

        Raises:
            HypothesisError: when they differ in length and the model takes no attention mask, or ignores it.
        """
        return cls(model, one_batch(model, inputs, error=HypothesisError))

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
        logits, values = [], {site: [] for site in read}  # type: ignore[var-annotated]
        places = list(dict.fromkeys(site.place for site in read))
        with self.model.quiet():
            for part in np.array_split(np.arange(len(rows)), max(-(-len(rows) // self.model.batching.stack), 1)):
                batch = self.pool.take(rows[part])
                edits = _edits({site: held.take(part) for site, held in known.items()}, keep, batch)
                run = self.model.run(batch, read=places, edits=edits, output=output)
                logits.append(torch.empty(0) if run.logits is None else run.logits)
                for site in read:
                    values[site].append(Held(site.take(run.values[site.place], batch), batch.mask))
        joined = {site: _join(parts) for site, parts in values.items()}
        return torch.cat(logits), joined


def _edits(patches: Mapping[Site, Held], keep: Sequence[Site], batch: Batch) -> dict[Place, Callable[[Tensor], Tensor]]:
    """One edit for every place, which puts in the values of all sites there, but for what is kept."""
    by_place: dict[Place, list[tuple[Site, Held]]] = {}
    for site, held in patches.items():
        by_place.setdefault(site.place, []).append((site, held))

    def editor(place: Place, members: list[tuple[Site, Held]]) -> Callable[[Tensor], Tensor]:
        def edit(value: Tensor) -> Tensor:
            own = {site: site.take(value, batch) for site in keep if site.place == place}
            for site, held in members:
                value = site.put(value, fitting(site, held, batch), batch)
            for site, kept in own.items():
                value = site.put(value, kept, batch)
            return value

        return edit

    return {place: editor(place, members) for place, members in by_place.items()}


def fitting(site: Site, held: Held, batch: Batch) -> Tensor:
    """Values of whole sequences, moved so that their last real tokens meet the batch's."""
    if site.position is not None or held.mask is None or held.value.ndim < 3:
        return held.value
    return align(held.value, held.mask, torch.arange(len(batch), device=held.value.device), batch)


def _join(parts: Sequence[Held]) -> Held:
    masks = [part.mask for part in parts if part.mask is not None]
    return Held(torch.cat([part.value for part in parts]), torch.cat(masks) if masks else None)
