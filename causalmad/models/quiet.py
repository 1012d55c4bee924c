"""Leave no trace: a user's model is as it was, whatever happens while it is being looked at."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import nn

# One lock per model, shared by everybody who opened it: hooks of two threads on one module would mix. It cannot be an
# attribute of the model, on which nothing may stay.
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_HELD: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_GUARD = threading.Lock()


@contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Eval mode and frozen parameters behind a lock; mode, flags, buffers and RNG are restored, also after an error.

    Nested uses by the same thread cost nothing.
    """
    with _GUARD:
        lock = _LOCKS.setdefault(module, threading.RLock())
    with lock:
        if _HELD.get(module, 0):
            yield
            return
        _HELD[module] = 1
        training = [part for part in module.modules() if part.training]
        wanted = [value for value in module.parameters() if value.requires_grad]
        buffers = [(value, value._version, value.detach().clone()) for value in module.buffers() if not value.is_meta]
        rng = torch.get_rng_state()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        try:
            # `module.eval()` would call a user's override; the flag is all that eval mode is.
            for part in training:
                part.training = False
            for value in wanted:
                value.requires_grad_(False)
            yield
        finally:
            for part in training:
                part.training = True
            for value in wanted:
                value.requires_grad_(True)
            with torch.no_grad():
                for value, version, before in buffers:
                    if value._version != version:
                        value.copy_(before)
            torch.set_rng_state(rng)
            if cuda:
                torch.cuda.set_rng_state_all(cuda)
            del _HELD[module]
