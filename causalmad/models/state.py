"""What the parts of a model hold besides their weights, which a run may change: noted, and put back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from itertools import chain
from operator import is_
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
Moment: TypeAlias = list[dict[str, Any]]

_NEAR = 2**12  # entries of a tensor in this machine's memory up to which comparing it costs next to nothing


class State:
    """Buffers and plain attributes of the parts of a model, as they are when this is made.

    Of the attributes of a part only tensors count. Where one of its tensors was written to or replaced, its other
    attributes are put back as well: they belong together, as a table does with the length that it is made for. What
    goes with weights that a part changes itself stays, as do things inside lists and other objects.

    Args:
        parts: of the model.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        # Of every part first the buffers, then the attributes.
        self._held: list[Any] = [held for part in parts for held in (part._buffers, part.__dict__)]
        found = [(number, value) for number, part in enumerate(parts) for value in part._buffers.values()]
        kinds = set(map(type, chain.from_iterable([part.__dict__.values() for part in parts])))
        if any(issubclass(kind, Tensor) for kind in kinds):  # of few models
            found += [
                (number, value)
                for number, part in enumerate(parts)
                for value in part.__dict__.values()
                if isinstance(value, Tensor)
            ]
        self.kept = [
            (number, _Kept(value))
            for number, value in found
            # What has a graph was computed from parameters, and is replaced and not written to.
            if value is not None and not value.is_meta and value.is_leaf
        ]

    def now(self) -> Moment:
        """Which objects the parts hold at this moment."""
        return [held.copy() if type(held) is dict else dict(held) for held in self._held]

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """A block after which everything is put back, so that no run depends on those before it."""
        before = self.now()
        try:
            yield
        finally:
            self.restore(before)

    def restore(self, before: Moment, thorough: bool = False) -> None:
        """Put everything back.

        Args:
            before: which objects there were.
            thorough: whether contents are compared wherever a change might not have been counted.
        """
        touched: set[int] = set()

        def content(each: tuple[int, _Kept]) -> None:
            number, kept = each
            if kept.restore(thorough):
                touched.add(number)

        try:
            with torch.inference_mode() if self.kept else nullcontext():  # elsewhere, tensors made in it are read-only
                every(content, self.kept)
        finally:
            changed = not _same(self._held, before)
            for index, (held, was) in enumerate(zip(self._held, before, strict=True) if changed else ()):
                number, attributes = divmod(index, 2)
                if _put_back(held, was, only=bool(attributes) and number not in touched):
                    touched.add(number)

    def holds(self, value: Tensor) -> bool:
        """Whether a tensor lies in memory that will be put back."""
        return bool(self._memory) and value.layout is torch.strided and _memory(value) in self._memory

    @cached_property
    def _memory(self) -> frozenset[int]:
        return frozenset(_memory(kept.value) for _, kept in self.kept if kept.plain)


class _Kept:
    """A tensor, and a copy of what it held."""

    __slots__ = ("before", "near", "plain", "value", "version")

    def __init__(self, value: Tensor) -> None:
        self.value, self.before, self.version = value, value.detach().clone(), version(value)
        self.plain = type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided
        self.near = self.plain and value.device.type == "cpu" and value.numel() <= _NEAR

    def restore(self, thorough: bool) -> bool:
        """Put the content back; whether it had changed."""
        if version(self.value) == self.version >= 0:
            # Writes through `.data` are not counted.
            if not (self.near or (thorough and self.plain)) or self._unchanged():
                return False
        if self.plain and (self.value.shape, self.value.dtype) != (self.before.shape, self.before.dtype):
            self.value.data = self.before.clone()
        else:
            self.value.copy_(self.before)
        self.version = version(self.value)
        return True

    def _unchanged(self) -> bool:
        return self.value.dtype == self.before.dtype and torch.equal(self.value, self.before)


def _memory(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _same(held: Sequence[Any], before: Moment) -> bool:
    """Whether dictionaries hold the very objects that they held."""
    if sum(map(len, held)) != sum(map(len, before)):
        return False
    now = chain.from_iterable([each.values() for each in held])
    return all(map(is_, now, chain.from_iterable(map(dict.values, before))))


def _put_back(held: dict[str, Any], before: dict[str, Any], only: bool = False) -> bool:
    """What a dictionary held; whether that was something else.

    Args:
        held: the dictionary.
        before: what it held.
        only: whether nothing is done where no tensor is among what changed.
    """
    changed = [name for name in {**held, **before} if held.get(name, held) is not before.get(name, held)]
    if only and not any(isinstance(part.get(name), Tensor) for name in changed for part in (held, before)):
        return False
    for name in changed:
        if name in before:
            held[name] = before[name]
        else:
            del held[name]
    return bool(changed)


def every(do: Callable[[T], object], things: Iterable[T]) -> None:
    """Do something with every thing; what fails does not keep the rest from it, and is raised at the end."""
    errors = []
    for thing in things:
        try:
            do(thing)
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


def version(value: Tensor) -> int:
    """How often a tensor was written to; -1 where that is not counted (inference mode)."""
    return -1 if value.is_inference() else value._version
