"""The default engine: plain PyTorch hooks and ``torch.autograd.grad``, removed whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from causalmad.models.places import (
    called_again,
    edited,
    fresh,
    part_at,
    pick,
    require_gradient,
    require_reached,
    slopes,
    swap,
)
from causalmad.models.state import version
from causalmad.sites import Place


class _Stop(BaseException):
    """Ends a forward pass after the last read; not an Exception, so that no model can swallow it."""


class Hooks:
    """Runs a module under forward hooks."""

    name = "hooks"

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
        for private in (False, True):
            visit = _Visit(module, read, sloped, edits, private=private)
            result, values, grads = visit.run(args, kwargs, objective, output or objective is not None)
            # A later in-place operation overwrote what was read: once more, with copies.
            if not visit.overwritten():
                break
        return result, values, grads


class _Visit:
    """One run: the hooks, and what they saw."""

    def __init__(
        self,
        module: nn.Module,
        read: Sequence[Place],
        sloped: Sequence[Place],
        edits: Mapping[Place, Callable[[Tensor], Tensor]],
        private: bool,
    ) -> None:
        self.module, self.edits, self.private = module, edits, private
        self.read, self.sloped = dict.fromkeys(read), dict.fromkeys(sloped)
        self.values: dict[Place, Tensor] = {}
        self.versions: dict[Place, int] = {}
        self.calls: dict[Place, int] = {}
        self.early = False
        self.thread = threading.get_ident()

    def run(
        self,
        args: tuple[Tensor, ...],
        kwargs: dict[str, Any],
        objective: Callable[[Any], tuple[Tensor, Tensor]] | None,
        output: bool,
    ) -> tuple[Any, dict[Place, Tensor], dict[Place, Tensor]]:
        self.early = not output
        result: Any = None
        with ExitStack() as stack, torch.set_grad_enabled(objective is not None):
            for place in dict.fromkeys([*self.read, *self.edits]):
                stack.callback(self._hook(place).remove)
            try:
                own, named = fresh(args, kwargs)
                result = self.module(*own, **named)
            except _Stop:
                pass
        # What comes after the last read plays no part where the output is not wanted.
        require_reached(list(self.read) if self.early else [*self.read, *self.edits], self.calls)
        if objective is None or not self.sloped:
            return result, {place: value.detach() for place, value in self.values.items()}, {}
        with torch.enable_grad():
            _, scalar = objective(result)
        grads = dict(zip(self.sloped, slopes(scalar, [self.values[place] for place in self.sloped]), strict=True))
        return result, {place: value.detach() for place, value in self.values.items()}, grads

    def overwritten(self) -> bool:
        return any(version(self.values[place]) != before for place, before in self.versions.items())

    def _hook(self, place: Place) -> torch.utils.hooks.RemovableHandle:
        part = part_at(place, self.module)
        if place.side == "output":

            def after(_: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
                return swap(result, place, self._visit(place, pick(result, place)))

            return part.register_forward_hook(after, with_kwargs=True)

        def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
            new = self._visit(place, pick((args, kwargs), place))
            return swap((args, kwargs), place, new)

        return part.register_forward_pre_hook(before, with_kwargs=True)

    def _visit(self, place: Place, value: Tensor) -> Tensor:
        if threading.get_ident() != self.thread:  # somebody else calls the model meanwhile: no business of ours
            return value
        self.calls[place] = self.calls.get(place, 0) + 1
        if self.calls[place] > 1:
            raise called_again(place)
        if place in self.edits:
            value = edited(place, value, self.edits[place])
        if place not in self.read:
            return value
        if place in self.sloped:
            require_gradient(place, value)
            # An alias of its own: what else reads the same tensor, as a residual stream goes on beside a layer, is no
            # part of the slope here, as an edit here does not reach it.
            value = value.view_as(value) if value.requires_grad else value.detach().requires_grad_(True)
        self.values[place] = _counted(value)
        self.versions[place] = version(self.values[place])
        if self.early and len(self.values) == len(self.read):
            raise _Stop
        # A leaf may not be written in place, and `private` keeps later in-place operations off what was read.
        return value.clone() if self.private or (value.is_leaf and value.requires_grad) else value


def _counted(value: Tensor) -> Tensor:
    """A value, or a copy where nobody counts what is written to it: it was made in inference mode, by the model."""
    if not value.is_inference():
        return value
    with torch.inference_mode(False):
        return value.clone()
