"""Gradients of what is read at the last position: behind the attention of the last block nothing else is run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from torch import Tensor
from torch.nn.functional import pad

from causalmad.errors import CausalmadError
from causalmad.inputs import Batch
from causalmad.models.alike import alike
from causalmad.models.base import OpenModel, Patch, Run
from causalmad.models.batching import out_of_memory
from causalmad.models.hooks import Hooks
from causalmad.models.recording import narrowed
from causalmad.sites import Place
from causalmad.targets import Readout, Target


class _Asked(TypedDict):
    read: Sequence[Place]
    target: Target | Readout
    sloped: Sequence[Place] | None
    edits: Mapping[Place, Patch] | None


class LastPosition:
    """Runs a model for gradients of its last logits, of which other positions have no part behind the last attention.

    There the slopes are zero anyway. The first such run at every set of places is made whole as well, and where the
    two differ, or a model raises, all runs at these places are whole.

    Args:
        model: the opened model; whole runs are all there is for the nnsight engine, and under standing edits.
    """

    def __init__(self, model: OpenModel) -> None:
        self.model = model
        self.parts = behind_attention(model) if from_last(model) and alone(model) else ()
        self.tried: dict[tuple[frozenset[Place], frozenset[Place]], bool] = {}

    def run(
        self,
        batch: Batch,
        *,
        read: Sequence[Place],
        target: Target | Readout,
        sloped: Sequence[Place] | None = None,
        edits: Mapping[Place, Patch] | None = None,
    ) -> Run:
        """Logits, and values and gradients at some places; values are no more than a guess where no gradient reaches.

        Args:
            batch: the inputs.
            read: places to read.
            target: read-out whose gradient is wanted.
            sloped: where the gradient is wanted, by default at all of ``read``.
            edits: place -> what becomes of its activation.

        Raises:
            SiteError: when a place is never reached, or has no tensor.
            ModelError: when the model raises, or its output holds no logits.
        """
        asked: _Asked = {"read": read, "target": target, "sloped": sloped, "edits": edits}
        kind = frozenset((*read, *(sloped or ()))), frozenset(edits or ())
        usable = self.parts and batch.mask is not None and batch.main.shape[1] > 1 and self.tried.get(kind, True)
        if not usable or in_last_block(self.model, edits or ()):
            return self.model.run(batch, **asked)
        found = self._narrow(batch, asked)
        if found is not None and kind in self.tried:
            return found
        whole = self.model.run(batch, **asked)
        self.tried[kind] = found is not None and _alike(found, whole)
        # What later calls will give, to the last bit.
        return found if found is not None and self.tried[kind] else whole

    def _narrow(self, batch: Batch, asked: _Asked) -> Run | None:
        """The run of the last position alone; None where that cannot be."""
        try:
            with self.model.held(), narrowed(self.model.module, self.parts):
                run = self.model.run(batch, **asked)
        except CausalmadError as error:
            if out_of_memory(error):
                raise
            return None  # the whole run says what is wrong, if it is not this
        width = batch.main.shape[1]
        # Where there is no slope no value counts: a view of the last position, not to be written to, stands for all.
        values = {key: value.expand(-1, width, -1) if _last(value) else value for key, value in run.values.items()}
        grads = {key: pad(slope, (0, 0, width - 1, 0)) if _last(slope) else slope for key, slope in run.grads.items()}
        return Run(run.logits, values, grads)


def alone(model: OpenModel) -> bool:
    """Whether parts of a model may be left out of its runs: nobody else wants a graph through them, or edits them."""
    return type(model) is OpenModel and isinstance(model.engine, Hooks) and model.standing is None


def from_last(model: OpenModel) -> bool:
    """Whether logits come from the last column alone."""
    return model.side == "left" and "logits_to_keep" in model.accepts


def behind_attention(model: OpenModel) -> tuple[str, ...]:
    """Parts of the last block that need no position but the one that is read: what comes behind its attention."""
    family = model.architecture
    if family is None or family.wiring is None:
        return ()
    parts = (family.projection, family.wiring.mlp_norm, family.mlp)
    known = {name for name, _ in model.module.named_modules()}  # a relative need not have every part (Cohere: one norm)
    return tuple(path for part in parts if (path := family.path(family.layers - 1, part)) in known)


def in_last_block(model: OpenModel, places: Iterable[Place]) -> bool:
    """Whether one of some places lies in the last block, or is its input or output."""
    family = model.architecture
    block = "" if family is None else f"{family.path(family.layers - 1)}."
    return bool(block) and any(f"{place.path}.".startswith(block) for place in places)


def _last(value: Tensor) -> bool:
    """Whether an activation holds the last position alone."""
    return value.ndim == 3 and value.shape[1] == 1


def _alike(found: Run, whole: Run) -> bool:
    """Whether logits and slopes are the same, and values at the last position and wherever there is a slope."""
    if found.logits is None or whole.logits is None or not alike(found.logits, whole.logits, whole.logits.dtype):
        return False
    for place, value in whole.values.items():
        own, slope = found.values[place], whole.grads.get(place)
        if own.shape != value.shape or (slope is not None and not alike(found.grads[place], slope, slope.dtype)):
            return False
        pairs = [(own[:, -1], value[:, -1])] if value.ndim > 1 else []
        pairs += [] if slope is None else [(own * (slope != 0), value * (slope != 0))]
        if not all(alike(mine, theirs, value.dtype) for mine, theirs in pairs):
            return False
    return True
