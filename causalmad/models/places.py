"""What engines share: picking one tensor out of what a module takes or gives, and putting another in its place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from causalmad.errors import ModelError, SiteError, nearest
from causalmad.sites import Place


def fresh(args: Iterable[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments for one call of a model, which may write into what it is given: copies of all tensors among them."""

    def copy(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) else value

    return tuple(map(copy, args)), {name: copy(value) for name, value in kwargs.items()}


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


def part_at(place: Place, module: nn.Module) -> nn.Module:
    """The part of a module at which a place is.

    Raises:
        SiteError: when no module has that path, with the nearest three.
    """
    found: Any = module
    for name in place.path.split(".") if place.path else ():
        found = getattr(found, name, None)
        if not isinstance(found, nn.Module):
            known = [path for path, _ in module.named_modules()]
            raise SiteError(f"no module {place.path!r} in {type(module).__name__}", tries=nearest(place.path, known))
    part: nn.Module = found
    return part


def edited(place: Place, value: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
    """The activation after an edit, in its own type.

    Raises:
        SiteError: when the edit changes the shape.
    """
    new = edit(value)
    if not isinstance(new, Tensor) or new.shape != value.shape:
        shape = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise SiteError(f"the edit at {place} gave {shape}", needed=f"shape {tuple(value.shape)}, as it was")
    return new.to(value.dtype)


def require_gradient(place: Place, value: Tensor) -> None:
    """Only real numbers have a gradient, and only outside of inference mode.

    Raises:
        SiteError: on integers, and on what a model computes in inference mode.
    """
    if not value.is_floating_point():
        raise SiteError(f"{place} holds {value.dtype}, which has no gradient", tries=["the output of the embedding"])
    if value.is_inference():
        raise SiteError(
            f"{place} was computed under torch.inference_mode(), where nothing has a gradient",
            causes=["a part of the model whose forward switches it on"],
            tries=["a signature without gradients: activations, resampling-profile", "a site behind that part"],
        )


def slopes(scalar: Tensor, wanted: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of a scalar at each value; zeros where it does not depend on it.

    Raises:
        ModelError: where an operation in between has no gradient, which torch takes for no dependence.
    """
    found: Sequence[Tensor | None] = [None] * len(wanted)
    if scalar.requires_grad:
        found = torch.autograd.grad(scalar, wanted, allow_unused=True)
        without = sum(grad is None for grad in found)
        if without and (cut := _without_gradient(scalar)):
            raise ModelError(
                f"{cut} operations between {without} sites and the output have no gradient",
                causes=["a quantised model", "an operation of your own without a backward pass"],
                tries=["a signature without gradients: activations, resampling-profile", "the model in float32"],
            )
    return [torch.zeros_like(value) if grad is None else grad for value, grad in zip(wanted, found, strict=True)]


def _without_gradient(scalar: Tensor) -> int:
    """How many operations on the way to a scalar have no gradient of their own."""
    seen, waiting = set(), [scalar.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return sum(node.name().endswith("NotImplemented") for node in seen)


def called_again(place: Place) -> SiteError:
    """The error for a place that one forward pass reaches twice."""
    return SiteError(
        f"{place} is called more than once in a forward pass",
        causes=["a module that is shared between layers", "generation in place of a single pass"],
        tries=["name a module inside that is called once"],
    )


def require_reached(wanted: Iterable[Place], reached: Collection[Place]) -> None:
    """Every place was reached.

    Raises:
        SiteError: otherwise, with the first that was not.
    """
    missed = [place for place in dict.fromkeys(wanted) if place not in reached]
    if missed:
        raise SiteError(
            f"{len(missed)} sites were never reached, the first is {str(missed[0]) or 'the model itself'}",
            causes=["a container such as a ModuleList, which is never called itself", "a branch that did not run"],
            tries=["name the modules inside it: " + f"{missed[0].path}.*"],
        )
