"""Signatures inside a signature: their model, their state, their donors and their units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from causalmad.errors import FitError
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.signatures.base import FittedSignature, Signature, State
from causalmad.signatures.units import Group

DonorsOf = Callable[[Inputs], Mapping[str, tuple[str, ...]]]


def require_signature(spec: object, option: str) -> None:
    """An option is a signature.

    Raises:
        FitError: when it is not.
    """
    if isinstance(spec, type) or not (hasattr(spec, "fit") and hasattr(spec, "restore")):
        raise FitError(f"{option}={spec!r}", needed="a signature", tries=["causalmad.signatures.Activations()"])


def on(inner: FittedSignature, model: OpenModel) -> FittedSignature:
    """The same fitted signature on another view of its model, such as one with standing edits."""
    names: list[str] = [field.name for field in fields(inner)] if is_dataclass(inner) else []
    if "model" not in names or getattr(inner, "model", model) is model:
        return inner
    part: Any = inner
    moved: FittedSignature = replace(part, model=model)
    return moved


def packed(inners: Sequence[FittedSignature]) -> State:
    """The states of some signatures as one, the arrays under the number of each."""
    states = [inner.state() for inner in inners]
    tensors = {f"{i}/{name}": value for i, state in enumerate(states) for name, value in state.tensors.items()}
    return State(tensors, {"inner": [dict(state.data) for state in states]})


def unpacked(specs: Sequence[Signature], model: OpenModel, state: State) -> tuple[FittedSignature, ...]:
    """The signatures that :func:`packed` wrote."""
    found = []
    for i, (spec, data) in enumerate(zip(specs, state.data["inner"], strict=True)):
        start = f"{i}/"
        own = {name.removeprefix(start): value for name, value in state.tensors.items() if name.startswith(start)}
        found.append(spec.restore(model, State(own, data)))
    return tuple(found)


def digests_of(inners: Sequence[FittedSignature]) -> tuple[str, ...]:
    """Contents of all donors."""
    return tuple(dict.fromkeys(key for inner in inners for key in getattr(inner, "donor_digests", ())))


def groups_of(inners: Sequence[FittedSignature]) -> tuple[Group, ...] | None:
    """The units of all, each group once; None where none of them says what its units are."""
    known = [groups for inner in inners if (groups := getattr(inner, "groups", None)) is not None]
    return tuple({group.name: group for groups in reversed(known) for group in groups}.values()) if known else None


def donors_of(inners: Sequence[FittedSignature]) -> DonorsOf | None:
    """What was replaced -> the donors, of all that choose donors for every input; None where none does."""
    chosen: list[Any] = [of for inner in inners if (of := getattr(inner, "donors_of", None)) is not None]
    if not chosen:
        return None

    def found(inputs: Inputs) -> Mapping[str, tuple[str, ...]]:
        each: dict[str, tuple[str, ...]] = {}
        for of in chosen:
            for name, ids in of(inputs).items():
                each[name] = tuple(dict.fromkeys((*each.get(name, ()), *ids)))
        return each

    return found
