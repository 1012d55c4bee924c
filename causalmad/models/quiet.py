"""Leave no trace: a user's model is as it was, whatever happens while it is being looked at."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class _Lock:
    """A lock, and its place in the order in which several are taken, so that no two threads wait for each other."""

    number: int
    inner: threading.RLock = field(default_factory=threading.RLock)


# One lock per model, shared by everybody who opened it or a part of it, or wrapped it: hooks of two threads on one
# module would mix. It cannot be an attribute of the model, on which nothing may stay.
_LOCKS: WeakKeyDictionary[nn.Module, _Lock] = WeakKeyDictionary()
_HELD: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # by which thread
_GUARD = threading.Lock()
_NUMBERS = itertools.count()


@contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Eval mode and frozen parameters behind a lock; mode, flags, buffers and RNGs are restored, also after an error.

    Nested uses by the same thread cost nothing.
    """
    if _HELD.get(module) == threading.get_ident():
        yield
        return
    parts = list(module.modules())
    with ExitStack() as stack:
        for lock in _locks(parts):
            stack.enter_context(lock.inner)
        training = [part for part in parts if part.training]
        own = {id(value): value for part in parts for value in part._parameters.values() if value is not None}
        wanted = [value for value in own.values() if value.requires_grad]
        away = list(_offloaded(parts))
        buffers = list(_buffers(parts))
        rng, plain, legacy = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        compiled = {part: part._compiled_call_impl for part in parts if part._compiled_call_impl is not None}
        try:
            _HELD[module] = threading.get_ident()
            # Compiled code was made without our hooks, and need not ask whether there are any by now.
            for part in compiled:
                part._compiled_call_impl = None
            # `module.eval()` would call a user's override; the flag is all that eval mode is.
            for part in training:
                part.training = False
            for value in wanted:
                value.requires_grad_(False)
            with _eager(parts):
                yield
        finally:
            for part, call in compiled.items():
                part._compiled_call_impl = call
            for part in training:
                part.training = True
            for owned, name, elsewhere in away:
                if owned.get(name) is not elsewhere:
                    owned[name] = elsewhere
            for value in wanted:
                value.requires_grad_(True)
            for buffer in buffers:
                buffer.restore()
            torch.set_rng_state(rng)
            random.setstate(plain)
            np.random.set_state(legacy)  # noqa: NPY002
            if cuda:
                torch.cuda.set_rng_state_all(cuda)
            _HELD.pop(module, None)


def _offloaded(parts: Iterable[nn.Module]) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Parameters and buffers whose values are elsewhere: accelerate puts others in their place when a layer runs."""
    for part in parts:
        owned: dict[str, Any]
        for owned in (part._parameters, part._buffers):
            for name, value in owned.items():
                if value is not None and value.is_meta:
                    yield owned, name, value


def _locks(parts: Sequence[nn.Module]) -> list[_Lock]:
    """Those of all models that share one of the parts, in the order in which everybody takes them."""
    with _GUARD:
        known = {lock.number: lock for part in parts if (lock := _LOCKS.get(part)) is not None}
        if not known:
            fresh = _Lock(next(_NUMBERS))
            known = {fresh.number: fresh}
        first, *_ = found = [known[number] for number in sorted(known)]
        for part in parts:
            _LOCKS.setdefault(part, first)
        return found


def _eager(parts: Iterable[nn.Module]) -> AbstractContextManager[Any]:
    """Parts that torch.compile has wrapped run as they were written."""
    if not any("_orig_mod" in part._modules for part in parts):
        return nullcontext()
    stance = getattr(torch.compiler, "set_stance", None)  # from torch 2.6 on
    return nullcontext() if stance is None else stance("force_eager")


@contextmanager
def contiguous(module: nn.Module | None) -> Iterator[None]:
    """The matrix of the vocabulary reads what lies together in memory.

    Of a few positions cut out of all, torch multiplies each row with it on its own, which takes several times as long.

    Args:
        module: a transformers model; None for nothing to do.
    """
    head = getattr(module, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Linear):
        yield
        return

    def copied(_: nn.Module, args: tuple[Any, ...]) -> Any:
        return (args[0].contiguous(), *args[1:]) if args and isinstance(args[0], Tensor) else None

    handle = head.register_forward_pre_hook(copied)
    try:
        yield
    finally:
        handle.remove()


class _Buffer(NamedTuple):
    """A buffer as it was: which tensor, and a copy of what it held."""

    owner: nn.Module
    name: str
    value: Tensor
    before: Tensor
    version: int

    def restore(self) -> None:
        if self.owner._buffers.get(self.name) is not self.value:
            self.owner._buffers[self.name] = self.value
        if _version(self.value) != self.version or self.version < 0:
            with torch.no_grad():
                self.value.copy_(self.before)


def _buffers(parts: Iterable[nn.Module]) -> Iterator[_Buffer]:
    for part in parts:
        for name, value in part._buffers.items():
            if value is not None and not value.is_meta:
                yield _Buffer(part, name, value, value.detach().clone(), _version(value))


def _version(value: Tensor) -> int:
    """How often a tensor was written to; -1 where that is not counted (inference mode)."""
    return -1 if value.is_inference() else value._version
