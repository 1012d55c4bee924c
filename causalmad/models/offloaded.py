"""Weights that accelerate keeps in memory, on disk or on another device until their layer runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn


@contextmanager
def at_hand(part: nn.Module) -> Iterator[None]:
    """A module's own weights are where it runs, for as long as it lasts.

    Args:
        part: a module; nothing happens where its weights never leave.
    """
    if not any(value is not None and value.is_meta for value in part._parameters.values()):
        yield
        return
    before = dict(part._parameters)
    try:
        # Only accelerate takes weights away, so it is there.
        with importlib.import_module("accelerate.utils").align_module_device(part):
            yield
    finally:
        part._parameters.update(before)


def offloaded(module: nn.Module) -> Iterator[tuple[str, Callable[[], object]]]:
    """Name of a parameter or buffer without values here -> what reads them from where accelerate keeps them."""
    for path, part in module.named_modules():
        hook = getattr(part, "_hf_hook", None)
        for each in getattr(hook, "hooks", (hook,)):
            weights = getattr(each, "weights_map", None)
            if weights is None:
                continue
            for name, value in (*part._parameters.items(), *part._buffers.items()):
                if value is not None and value.is_meta:
                    yield f"{path}.{name}" if path else name, partial(weights.__getitem__, name)
