"""In which order a model makes its values: a trace has to ask for them in that order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from causalmad.models.places import called_again, fresh, require_reached
from causalmad.sites import Place

Moment: TypeAlias = tuple[str, str]  # a module's path, and "input" or "output"

_KNOWN: WeakKeyDictionary[nn.Module, list[Moment]] = WeakKeyDictionary()


def recorded(
    module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], *, again: bool = False
) -> list[Moment]:
    """What a plain run reaches, in order, once per call; run once per module, or ``again``."""
    known = None if again else _KNOWN.get(module)
    if known is None:
        moments: list[Moment] = []

        def note(path: str, side: str) -> Callable[..., None]:
            return lambda *_: moments.append((path, side))

        handles = []
        try:
            for path, part in module.named_modules():
                handles.append(part.register_forward_pre_hook(note(path, "input")))
                handles.append(part.register_forward_hook(note(path, "output")))
            own, named = fresh(args, kwargs)
            with torch.no_grad(), torch.random.fork_rng():
                module(*own, **named)
        finally:
            for handle in handles:
                handle.remove()
        known = _KNOWN[module] = moments
    return known


def defined(parts: Iterable[str]) -> list[Moment]:
    """The order in which modules run if they run in the order of their definition: inputs before, outputs after."""
    order: list[Moment] = []
    open_: list[str] = []
    for path in parts:
        while open_ and open_[-1] and not f"{path}.".startswith(f"{open_[-1]}."):
            order.append((open_.pop(), "output"))
        order.append((path, "input"))
        open_.append(path)
    return order + [(path, "output") for path in reversed(open_)]


def ranks(places: Iterable[Place], order: Sequence[Moment]) -> dict[Place, int]:
    """Where each place stands in the order.

    Raises:
        SiteError: when one is never reached, or more than once.
    """
    times = Counter(order)
    require_reached(places, [place for place in places if times[place.path, place.side]])
    for place in places:
        if times[place.path, place.side] > 1:
            raise called_again(place)
    first = {moment: rank for rank, moment in enumerate(order)}
    return {place: first[place.path, place.side] for place in places}


@contextmanager
def counted(parts: Iterable[nn.Module]) -> Iterator[Counter[int]]:
    """How often each module is called meanwhile, by id."""
    calls: Counter[int] = Counter()
    handles = []
    try:
        for part in dict.fromkeys(parts):
            handles.append(part.register_forward_pre_hook(lambda each, _: calls.update([id(each)])))
        yield calls
    finally:
        for handle in handles:
            handle.remove()
