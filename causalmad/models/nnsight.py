"""The nnsight engine: the same runs through ``trace``, for models that only nnsight can open or that live elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from causalmad.errors import ModelError, SiteError
from causalmad.models.places import (
    called_again,
    edited,
    part_at,
    pick,
    require_gradient,
    require_reached,
    slopes,
    swap,
)
from causalmad.sites import Place

Moment = tuple[str, str]  # a module's path, and "input" or "output"

# A trace must ask for values in the order in which the model makes them; one plain run tells that order.
_ORDERS: WeakKeyDictionary[nn.Module, list[Moment]] = WeakKeyDictionary()


class Step(NamedTuple):
    """What is done at one place."""

    envoy: Any
    place: Place
    edit: Callable[[Tensor], Tensor] | None
    wanted: bool


class Traces:
    """Runs a module through nnsight.

    Args:
        remote: False runs here. ``"local"`` (serialise, deserialise, run here) and True (on NDIF's servers) are
            nnsight's own, and need its ``TransformersModel``.
    """

    name = "nnsight"

    def __init__(self, remote: bool | str = False) -> None:
        self.remote = remote

    def run(
        self,
        module: Any,
        args: tuple[Tensor, ...],
        kwargs: dict[str, Any],
        *,
        read: Sequence[Place],
        edits: Mapping[Place, Callable[[Tensor], Tensor]],
        objective: Callable[[Any], tuple[Tensor, Tensor]] | None,
        output: bool,
    ) -> tuple[Any, dict[Place, Tensor], dict[Place, Tensor]]:
        """See :class:`causalmad.models.base.Engine`; ``module`` may be a plain module or an nnsight ``Envoy``."""
        import nnsight

        read = tuple(dict.fromkeys(read))
        options = {} if not self.remote else {"remote": self.remote}
        with _wrapped(module, self.remote) as envoy:
            parts = dict(envoy._module.named_modules())
            places = {place: part_at(place, parts) for place in (*read, *edits)}
            envoys = {id(each._module): each for each in (envoy, *envoy.modules())}
            # On a server there is no module to try out: values are asked for in the order of definition.
            here = self.remote is not True
            order = _recorded(envoy._module, args, kwargs) if here else defined(parts)
            for fresh in (False, True):
                if here and fresh:
                    _ORDERS.pop(envoy._module, None)
                    order = _recorded(envoy._module, args, kwargs)
                ranks = _ranks(places, order)
                last = max((ranks[place] for place in read), default=len(order))
                early = not output and objective is None and bool(read)
                steps = [
                    Step(envoys[id(places[place])], place, edits.get(place), place in read)
                    for place in sorted(places, key=ranks.__getitem__)
                    if not early or ranks[place] <= last
                ]
                with _counted([places[step.place] for step in steps] if here else []) as calls:
                    try:
                        found = _trace(envoy, args, kwargs, options, steps, objective, early)
                    except nnsight.OutOfOrderError as error:
                        # The order was recorded on another input, for which the model took another way.
                        if fresh or not here:
                            raise SiteError(
                                f"nnsight could not read {', '.join(str(step.place) for step in steps[:3])}, ... in order",
                                causes=["a branch that did not run", "modules defined in another order than they run"],
                                tries=["open_model(model), the default engine"],
                            ) from error
                        continue
                for step in steps:
                    if calls[id(places[step.place])] > 1:
                        raise called_again(step.place)
                values = dict(zip((step.place for step in steps if step.wanted), found["values"], strict=True))
                slope = dict(zip(values, found["grads"], strict=False))
                return found["result"], {p: values[p] for p in read}, {p: slope[p] for p in read if p in slope}
        raise AssertionError  # pragma: no cover


def _trace(
    envoy: Any,
    args: tuple[Tensor, ...],
    kwargs: dict[str, Any],
    options: dict[str, Any],
    steps: list[Step],
    objective: Callable[[Any], tuple[Tensor, Tensor]] | None,
    early: bool,
) -> dict[str, Any]:
    """One trace: the output, the values of the wanted steps in order, and their gradients."""
    import nnsight

    slope = objective is not None
    with torch.set_grad_enabled(slope):
        # nnsight compiles this block from its source and, for a remote run, ships it with what it names.
        with envoy.trace(*args, **options, **kwargs) as tracer:
            found = nnsight.save({"result": None, "values": [], "grads": []})
            kept = []
            for step in steps:
                if step.place.side == "input":
                    whole = step.envoy.inputs
                else:
                    whole = step.envoy.output
                before, value = visit(step, pick(whole, step.place), slope)
                if step.wanted:
                    kept.append(value)
                # Later in-place operations must not overwrite what was read.
                if value is not before or step.wanted:
                    after = swap(whole, step.place, value.clone() if step.wanted else value)
                    if step.place.side == "input":
                        step.envoy.inputs = after
                    else:
                        step.envoy.output = after
            if early:
                found["values"] = [value.detach() for value in kept]
                tracer.stop()
            found["result"] = envoy.output
            if slope and kept:
                found["grads"] = slopes(objective(found["result"])[1], kept)
            found["values"] = [value.detach() for value in kept]
    return found


def visit(step: Step, value: Tensor, slope: bool) -> tuple[Tensor, Tensor]:
    """The value at a place as it was, and as the rest of the model shall see it."""
    new = value if step.edit is None else edited(step.place, value, step.edit)
    if slope and step.wanted:
        require_gradient(step.place, new)
        if not new.requires_grad:
            new = new.detach().requires_grad_(True)
    return value, new


@contextmanager
def _wrapped(module: Any, remote: bool | str) -> Iterator[Any]:
    """The module's envoy; of a plain module only for as long as this lasts, and without a trace afterwards."""
    import nnsight

    if remote and not isinstance(module, nnsight.TransformersModel):
        # A bare NNsight would hand `remote` on to the model, which runs here as if nothing had been asked.
        raise ModelError(
            f"remote={remote!r} on a {type(module).__name__}", needed="an nnsight.TransformersModel", tries=["remote=False"]
        )
    own = not isinstance(module, nnsight.Envoy)
    before = [(part, dict(part.__dict__)) for part in (module if own else module._module).modules()]
    try:
        yield nnsight.NNsight(module) if own else module
    finally:
        for part, attributes in before:
            _restore(part, attributes, own)


# What nnsight leaves on a module: its own forward and its state, or, from a remote run, how it was named to the server.
_INSTALLED = ("forward", "__nnsight_state__", "_persistent_id")


def _restore(part: nn.Module, attributes: Mapping[str, Any], own: bool) -> None:
    for name in _INSTALLED if own else _INSTALLED[2:]:
        if name in attributes:
            part.__dict__[name] = attributes[name]
        else:
            part.__dict__.pop(name, None)


def _recorded(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> list[Moment]:
    """What a plain run reaches, in order, once per call."""
    known = _ORDERS.get(module)
    if known is None:
        moments: list[Moment] = []

        def note(path: str, side: str) -> Callable[..., None]:
            return lambda *_: moments.append((path, side))

        handles = []
        try:
            for path, part in module.named_modules():
                # The first hooks in and the last out, so that hooks of others do not come between.
                handles.append(part.register_forward_pre_hook(note(path, "input")))
                handles.append(part.register_forward_hook(note(path, "output")))
            with torch.no_grad(), torch.random.fork_rng():
                module(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        known = _ORDERS[module] = moments
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


def _ranks(places: Iterable[Place], order: Sequence[Moment]) -> dict[Place, int]:
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
def _counted(parts: Iterable[nn.Module]) -> Iterator[Counter[int]]:
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
