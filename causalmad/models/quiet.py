"""Leave no trace: a user's model is as it was, whatever happens while it is being looked at."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from causalmad.models.state import State, every


@dataclass(frozen=True)
class _Lock:
    """A lock, and its place in the order in which several are taken, so that no two threads wait for each other."""

    number: int
    inner: threading.RLock = field(default_factory=threading.RLock)


@dataclass(frozen=True)
class _Holder:
    """Who keeps a model quiet."""

    thread: int
    state: State


# One lock per model, shared by everybody who opened it or a part of it, or wrapped it: hooks of two threads on one
# module would mix. It cannot be an attribute of the model, on which nothing may stay.
_LOCKS: WeakKeyDictionary[nn.Module, _Lock] = WeakKeyDictionary()
_HELD: WeakKeyDictionary[nn.Module, _Holder] = WeakKeyDictionary()
_GUARD = threading.Lock()
_NUMBERS = itertools.count()
_ATTENTION = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)


@contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Eval mode and frozen parameters behind a lock; mode, flags, buffers and RNGs are restored, also after an error.

    Nested uses by the same thread cost little: each puts back the state that the model keeps besides its weights.
    """
    state = _mine(module)
    if state is not None:
        with state.rewound():
            yield
        return
    parts = _parts(module)
    # Every step is entered before it is taken, so that all of them are taken back, whatever fails on either way.
    with ExitStack() as stack:
        for lock in _locks(parts):
            stack.enter_context(lock.inner)
        stack.callback(_set_generators, *_generators())
        state = State(parts)
        stack.callback(state.restore, state.now(), thorough=True)
        own = [value for part in parts for value in part._parameters.values() if value is not None]
        if wanted := [value for value in own if value.requires_grad]:
            stack.callback(_require_gradients, wanted)
        stack.callback(_put_away, list(_offloaded(parts)))
        if training := [part for part in parts if part.training]:
            stack.callback(_set_each, training, "training", [True] * len(training))
        if compiled := [part for part in parts if part._compiled_call_impl is not None]:
            stack.callback(_set_each, compiled, "_compiled_call_impl", [part._compiled_call_impl for part in compiled])
            # Compiled code was made without our hooks, and need not ask whether there are any by now.
            _set_each(compiled, "_compiled_call_impl", [None] * len(compiled))
        # `module.eval()` would call a user's override; the flag is all that eval mode is.
        _set_each(training, "training", [False] * len(training))
        for value in wanted:
            value.requires_grad_(False)
        if any("_orig_mod" in part._modules for part in parts):
            stack.enter_context(_eager())
        if any(issubclass(kind, _ATTENTION) for kind in set(map(type, parts))):
            stack.enter_context(_FAST_ATTENTION.off())
        stack.callback(_HELD.pop, module, None)
        _HELD[module] = _Holder(threading.get_ident(), state)
        yield


def held(module: nn.Module) -> AbstractContextManager[None]:
    """The same, for a block in which only what is quiet itself runs the module: nested, it has nothing to put back."""
    return quiet(module) if _mine(module) is None else nullcontext()


def _mine(module: nn.Module) -> State | None:
    """What is noted of a module that this thread keeps quiet."""
    holder = _HELD.get(module)
    return holder.state if holder is not None and holder.thread == threading.get_ident() else None


def apart(module: nn.Module, value: Tensor) -> Tensor:
    """A value of a run of a module that is kept quiet, as a copy where it lies in memory that will be put back."""
    holder = _HELD.get(module)
    return value.clone() if holder is not None and holder.state.holds(value) else value


def _generators() -> tuple[Any, ...]:
    """The states of the global random generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), random.getstate(), np.random.get_state(), cuda  # noqa: NPY002


def _set_generators(cpu: Tensor, plain: Any, legacy: Any, cuda: list[Tensor]) -> None:
    torch.set_rng_state(cpu)
    random.setstate(plain)
    np.random.set_state(legacy)  # noqa: NPY002
    if cuda:
        torch.cuda.set_rng_state_all(cuda)


def _require_gradients(values: Iterable[Tensor]) -> None:
    with torch.inference_mode():  # elsewhere, tensors that were made in it refuse
        every(lambda value: value.requires_grad_(True), values)


def _set_each(parts: Iterable[nn.Module], name: str, values: Iterable[Any]) -> None:
    for part, value in zip(parts, values, strict=True):
        setattr(part, name, value)


def _put_away(away: Iterable[tuple[dict[str, Any], str, Tensor]]) -> None:
    for owned, name, elsewhere in away:
        if owned.get(name) is not elsewhere:
            owned[name] = elsewhere


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
        given = list(map(_LOCKS.get, parts))
        known = {lock.number: lock for lock in given if lock is not None}
        if not known:
            fresh = _Lock(next(_NUMBERS))
            known = {fresh.number: fresh}
        first, *_ = found = [known[number] for number in sorted(known)]
        for part, lock in zip(parts, given, strict=True):
            if lock is None:
                _LOCKS[part] = first
        return found


def _parts(module: nn.Module) -> list[nn.Module]:
    """A module and all of its parts, each once; ``module.modules()`` takes longer, for names that nobody asks for."""
    found = {module: None}
    waiting = [module]
    while waiting:
        for part in waiting.pop()._modules.values():
            if part is not None and part not in found:
                found[part] = None
                waiting.append(part)
    return list(found)


class _FastAttention:
    """The kernels in which torch's own attention runs whole layers, for a whole process: off while anybody needs it.

    They pass by the parts of a layer, with whatever is read or edited there, and drop padded positions on the way.
    """

    def __init__(self) -> None:
        self.users, self.before = 0, True

    @contextmanager
    def off(self) -> Iterator[None]:
        with _GUARD:
            if not self.users:
                self.before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            self.users += 1
        try:
            yield
        finally:
            with _GUARD:
                self.users -= 1
                if not self.users:
                    torch.backends.mha.set_fastpath_enabled(self.before)


_FAST_ATTENTION = _FastAttention()


def _eager() -> AbstractContextManager[Any]:
    """Parts that torch.compile has wrapped run as they were written."""
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
