"""The nnsight engine: the same runs through ``trace``, for models that only nnsight can open or that live elsewhere."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from causalmad.errors import ModelError, SiteError
from causalmad.models.offloaded import offloaded
from causalmad.models.order import Moment, counted, defined, ranks, recorded
from causalmad.models.places import (
    called_again,
    edited,
    fresh,
    part_at,
    pick,
    require_gradient,
    slopes,
    swap,
)
from causalmad.sites import Place


class Step(NamedTuple):
    """What is done at one place."""

    envoy: Any
    place: Place
    edit: Callable[[Tensor], Tensor] | None
    wanted: bool
    sloped: bool


class Traces:
    """Runs a module through nnsight.

    Args:
        handle: the user's own wrapper, which is run where there is one; a plain module is wrapped for each run.
        remote: False runs here. ``"local"`` (serialise, deserialise, run here) and True (on NDIF's servers) are
            nnsight's own, and need its ``TransformersModel``.

    Raises:
        ModelError: for a remote run of anything but a ``TransformersModel``.
    """

    name = "nnsight"

    def __init__(self, handle: Any, remote: bool | str = False) -> None:
        import nnsight

        if remote and not isinstance(handle, nnsight.TransformersModel):
            # A bare NNsight would hand `remote` on to the model, which runs here as if nothing had been asked.
            raise ModelError(
                f"remote={remote!r} on a {type(handle).__name__}",
                needed="an nnsight.TransformersModel",
                tries=["remote=False"],
            )
        self.handle = handle if isinstance(handle, nnsight.Envoy) else None
        self.remote = remote

    def run(
        self,
        module: nn.Module,
        args: tuple[Tensor, ...],
        kwargs: dict[str, Any],
        *,
        read: Sequence[Place],
        sloped: Sequence[Place],
        edits: Mapping[Place, Callable[[Tensor], Tensor]],
        objective: Callable[[Any], tuple[Tensor, Tensor]] | None,
        output: bool,
    ) -> tuple[Any, dict[Place, Tensor], dict[Place, Tensor]]:
        """See :class:`causalmad.models.base.Engine`."""
        from nnsight.intervention.interleaver import OutOfOrderError

        call = _Call(args, kwargs, tuple(dict.fromkeys(read)), frozenset(sloped), edits, objective, output)
        options = {"remote": self.remote} if self.remote else {}
        with wrapped(module, self.handle, marked=bool(self.remote)) as envoy, shipped(bool(self.remote)):
            try:
                if self.remote is True:
                    # No module is here to try out: values are asked for in the order of definition.
                    return _ordered(envoy, call, options, defined(name for name, _ in module.named_modules()))
                try:
                    return _ordered(envoy, call, options, recorded(module, args, kwargs))
                except (OutOfOrderError, SiteError):
                    # The order was recorded on another input, for which the model may have taken another way.
                    return _ordered(envoy, call, options, recorded(module, args, kwargs, again=True))
            except OutOfOrderError as error:
                raise SiteError(
                    f"nnsight could not read {len(call.places)} sites in order, the first is {call.places[0]}: {error}",
                    causes=["a branch that did not run", "modules defined in another order than they run"],
                    tries=["open_model(model), the default engine"],
                ) from error


class _Call(NamedTuple):
    """What :meth:`Traces.run` was asked for."""

    args: tuple[Tensor, ...]
    kwargs: dict[str, Any]
    read: tuple[Place, ...]
    sloped: frozenset[Place]
    edits: Mapping[Place, Callable[[Tensor], Tensor]]
    objective: Callable[[Any], tuple[Tensor, Tensor]] | None
    output: bool

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(dict.fromkeys((*self.read, *self.edits)))


def _ordered(
    envoy: Any, call: _Call, options: dict[str, Any], order: Sequence[Moment]
) -> tuple[Any, dict[Place, Tensor], dict[Place, Tensor]]:
    """One run that asks for its values in a given order."""
    places = {place: part_at(place, envoy._module) for place in call.places}
    envoys = {id(each._module): each for each in envoy.modules()}
    rank = ranks(places, order)
    early = not call.output and call.objective is None and bool(call.read)
    last = max(rank[place] for place in call.read) if early else len(order)
    steps = [
        Step(envoys[id(places[place])], place, call.edits.get(place), place in call.read, place in call.sloped)
        for place in sorted(places, key=rank.__getitem__)
        if rank[place] <= last
    ]
    with counted(places.values()) as calls:
        found = _trace(envoy, call.args, call.kwargs, options, steps, call.objective, early)
    for step in steps:
        if calls[id(places[step.place])] > 1:
            raise called_again(step.place)
    values = dict(zip((step.place for step in steps if step.wanted), found["values"], strict=True))
    slope = dict(zip((step.place for step in steps if step.sloped), found["grads"], strict=False))
    return found["result"], {p: values[p] for p in call.read}, {p: slope[p] for p in call.read if p in slope}


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

    found: dict[str, Any] = {}
    args, kwargs = fresh(args, kwargs)
    with torch.set_grad_enabled(objective is not None):
        # nnsight compiles this block from its source and, for a remote run, ships it with what it names.
        with envoy.trace(*args, **options, **kwargs) as tracer:
            found = nnsight.save({"result": None, "values": [], "grads": []})
            kept, leaves = [], []
            for step in steps:
                if step.place.side == "input":
                    whole = step.envoy.inputs
                else:
                    whole = step.envoy.output
                before, value = visit(step, pick(whole, step.place))
                if step.wanted:
                    kept.append(value)
                if step.sloped:
                    leaves.append(value)
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
            if objective is not None and leaves:
                found["grads"] = slopes(objective(found["result"])[1], leaves)
            found["values"] = [value.detach() for value in kept]
    return found


def visit(step: Step, value: Tensor) -> tuple[Tensor, Tensor]:
    """The value at a place as it was, and as the rest of the model shall see it."""
    new = value if step.edit is None else edited(step.place, value, step.edit)
    if step.sloped:
        require_gradient(step.place, new)
        # An alias of its own: what else reads the same tensor is no part of the slope here.
        new = new.view_as(new) if new.requires_grad else new.detach().requires_grad_(True)
    return value, new


@contextmanager
def wrapped(module: nn.Module, handle: Any, marked: bool) -> Iterator[Any]:
    """The user's wrapper, or one of our own that is taken off the module afterwards.

    Args:
        module: the plain module.
        handle: the user's own wrapper of it, or None.
        marked: whether nnsight marks the parts with their names for a server.
    """
    if not marked and next(offloaded(module), None) is not None:
        raise ModelError(
            f"nnsight on a {type(module).__name__} whose weights accelerate keeps elsewhere until a layer runs",
            causes=["device_map='auto' with less memory than the model takes"],
            tries=["open_model(model), the default engine", "a device_map without 'cpu' and 'disk'"],
        )
    before = [(part, dict(part.__dict__)) for part in module.modules()]
    added: list[tuple[nn.Module, dict[str, Any], str]] = []
    try:
        try:
            envoy = handle if handle is not None else _wrap(module)
        except (AttributeError, TypeError) as error:
            raise ModelError(f"nnsight cannot open this {type(module).__name__}: {error}") from error
        finally:
            # nnsight puts a forward and a state of its own on every part, and never takes them off.
            added += [(part, was, name) for part, was in before for name in _changed(part, was)]
        yield envoy
    finally:
        added += [(part, was, "_persistent_id") for part, was in before if marked]
        for part, was, name in added:
            if name in was:
                part.__dict__[name] = was[name]
            else:
                part.__dict__.pop(name, None)


@contextmanager
def shipped(remote: bool) -> Iterator[None]:
    """For a remote run, our code travels with the request: no server has it."""
    if not remote:
        yield
        return
    cloudpickle = importlib.import_module("cloudpickle")
    ours = sys.modules["causalmad"]
    new = ours.__name__ not in cloudpickle.list_registry_pickle_by_value()
    if new:
        cloudpickle.register_pickle_by_value(ours)
    try:
        yield
    finally:
        if new and ours.__name__ in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.unregister_pickle_by_value(ours)


def _wrap(module: nn.Module) -> Any:
    import nnsight

    with warnings.catch_warnings():
        # A part called "output" (BERT has many) gets another attribute name, and we go by the modules themselves.
        warnings.filterwarnings("ignore", message=".*which nnsight already serves")
        return nnsight.NNsight(module)


def _changed(part: nn.Module, was: Mapping[str, Any]) -> list[str]:
    return [name for name, value in part.__dict__.items() if name not in was or was[name] is not value]
