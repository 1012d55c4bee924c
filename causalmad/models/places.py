"""Picking one tensor out of what goes into or comes out of a module, and putting another in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from causalmad.errors import SiteError
from causalmad.sites import Place


def pick(whole: Any, place: Place) -> Tensor:
    """The tensor of a place.

    Args:
        whole: a module's output, or its ``(args, kwargs)``.
        place: without an element the first tensor is meant.

    Raises:
        SiteError: when there is no such tensor.
    """
    key = _key(whole, place)
    value = _at(whole, key, place)
    if not isinstance(value, Tensor):
        raise SiteError(f"{place} is {_kind(value)}, not a tensor", tries=_elements(whole, place))
    return value


def swap(whole: Any, place: Place, new: Tensor) -> Any:
    """``whole`` with the tensor of a place replaced."""
    key = _key(whole, place)
    if place.side == "input":
        args, kwargs = whole
        if isinstance(key, str):
            return args, {**kwargs, key: new}
        return (*args[:key], new, *args[key + 1 :]), kwargs
    if key is None:
        return new
    if isinstance(whole, Mapping):
        copy = type(whole)(whole)  # type: ignore[call-arg]
        copy[key] = new  # type: ignore[index]
        return copy
    parts = [*whole[:key], new, *whole[key + 1 :]]
    return type(whole)(*parts) if hasattr(whole, "_fields") else type(whole)(parts)


def _key(whole: Any, place: Place) -> Any:
    """Which element is meant: a number, a name, or None for a bare tensor."""
    if place.element is not None:
        return place.element
    if place.side == "input":
        args, kwargs = whole
        named = [name for name, value in kwargs.items() if isinstance(value, Tensor)]
        first = next((i for i, value in enumerate(args) if isinstance(value, Tensor)), named[0] if named else 0)
        return first
    if isinstance(whole, (tuple, list)):
        return next((i for i, value in enumerate(whole) if isinstance(value, Tensor)), 0)
    if isinstance(whole, Mapping):
        return next((name for name, value in whole.items() if isinstance(value, Tensor)), None)
    return None


def _at(whole: Any, key: Any, place: Place) -> Any:
    try:
        if place.side == "input":
            args, kwargs = whole
            return kwargs[key] if isinstance(key, str) else args[key]
        return whole if key is None else whole[key]
    except (KeyError, IndexError, TypeError) as error:
        raise SiteError(f"{place} does not exist: {_kind(whole)}", tries=_elements(whole, place)) from error


def _elements(whole: Any, place: Place) -> list[str]:
    """The text forms of the tensors that are there."""
    if place.side == "input":
        args, kwargs = whole
        pairs = [*enumerate(args), *kwargs.items()]
    else:
        pairs = list(whole.items() if isinstance(whole, Mapping) else enumerate(whole if _many(whole) else ()))
    return [str(Place(place.path, place.side, key)) for key, value in pairs if isinstance(value, Tensor)][:3]


def _many(whole: Any) -> bool:
    return isinstance(whole, (tuple, list))


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" + (f" of {len(value)}" if _many(value) else "")
