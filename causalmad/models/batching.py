"""How many inputs share a run of the model: a fixed number, or as many as fit into memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from causalmad.errors import ModelError
from causalmad.inputs import Batch, Inputs

if TYPE_CHECKING:
    from causalmad.models.base import OpenModel

T = TypeVar("T")
K = TypeVar("K")
Told: TypeAlias = Callable[[int, int], None]
"""Called with (inputs that went by, inputs in all)."""

DEFAULT = 64
VARIANTS = 8
# What allocators say, and libraries whose own buffers found no place.
_SAID = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "cudnn_status_not_supported")


@dataclass(eq=False)
class Batching:
    """The size of batches, shared by every view of an opened model.

    Attributes:
        size: inputs a batch, at most.
        auto: whether inputs are sorted by length, and ``size`` is halved where a batch ran out of memory; once it is
            one, ``variants`` is.
        variants: edited runs of an input that share a run where there are many of them: a stack of them has no
            gradients, so it may be so many times as wide as a batch.
        told: who is told how far a round over inputs is, while somebody watches.
        padding: side -> arguments that tell the model what is padding there (:mod:`causalmad.models.padding`), where
            that was tried out; none where nothing does.
    """

    size: int = DEFAULT
    auto: bool = False
    variants: int = VARIANTS
    told: Told | None = None
    padding: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, size: int | Literal["auto"]) -> Batching:
        """Batches of a size, or of what fits, which starts at 64.

        Raises:
            ModelError: when it is neither a positive number nor ``"auto"``.
        """
        if size == "auto":
            return cls(DEFAULT, auto=True)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ModelError(f"batch_size={size!r}", needed='a number of inputs, or "auto"', tries=["batch_size=64"])
        return cls(size)

    @property
    def stack(self) -> int:
        """Rows in a run of variants, at most."""
        return self.size * self.variants

    @contextmanager
    def watched(self, told: Told | None) -> Iterator[None]:
        """While it lasts, ``told`` is called after every batch; each round over inputs counts from the start."""
        before, self.told = self.told, told
        try:
            yield
        finally:
            self.told = before

    def counted(self, batches: Iterable[Batch], total: int) -> Iterator[Batch]:
        """The batches as they are; whoever watches is told when one is done.

        Args:
            batches: of one round.
            total: inputs in all of them.
        """
        done = 0
        if self.told is not None:
            self.told(done, total)
        for batch in batches:
            yield batch
            done += len(batch)
            if self.told is not None:
                self.told(done, total)

    def shrink(self, error: BaseException) -> bool:
        """Whether to try again, with half as many rows a run: what failed ran out of memory, and there is room."""
        if not self.auto or self.stack == 1 or not out_of_memory(error):
            return False
        if self.size > 1:
            self.size //= 2
        else:
            self.variants //= 2
        return True


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that memory ran out."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _SAID):
            return True
        error = error.__cause__ or error.__context__
    return False


def within_memory(model: OpenModel, work: Callable[[], T]) -> T:
    """What ``work`` gives; where it ran out of memory, and the model's batches are ``"auto"``, of smaller batches.

    Args:
        model: whose batches are made smaller.
        work: is called anew from its start, and reads the model's ``batch_size`` as it is then.
    """
    while True:
        try:
            return work()
        except Exception as error:
            if not model.batching.shrink(error):
                raise
        _release()  # outside of the handler: the error holds on to what the failed run had computed


def each_batch(model: OpenModel, inputs: Inputs, size: int | None, work: Callable[[Batch], object]) -> None:
    """Call ``work`` with batches in which every input is once; one that does not fit into memory is halved.

    Args:
        model: whose batches they are.
        inputs: all of them.
        size: inputs a batch, where not the model's.
        work: what is done with a batch; called again, on its halves, when it raised.
    """
    for batch in model.batches(inputs, size):
        waiting = [batch]
        while waiting:
            now = waiting.pop()
            if model.batching.auto and len(now) > model.batch_size:
                waiting += reversed(list(_parts(now, model.batch_size)))
                continue
            try:
                work(now)
                continue
            except Exception as error:
                if not model.batching.shrink(error):
                    raise
            _release()
            waiting.append(now)


def in_stacks(model: OpenModel, batch: Batch, work: Callable[[Batch], Mapping[K, Tensor]]) -> dict[K, Tensor]:
    """Name -> (batch, ...) what ``work`` gives for all rows of a batch, of which no more share a run than variants do.

    Args:
        model: whose runs they are.
        batch: the inputs, such as donors that are captured once.
        work: from inputs to tensors, one row an input.
    """
    if len(batch) <= model.batching.stack:
        return dict(work(batch))
    found = [work(part) for part in _parts(batch, model.batching.stack)]
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def _parts(batch: Batch, size: int) -> Iterator[Batch]:
    rows = np.arange(len(batch))
    return (batch.take(rows[start : start + size]) for start in range(0, len(batch), size))


def _release() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
