"""From what people type to a part: a name of the catalogue, a detector's text, or an import path."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import Any

from causalmad.catalogue import catalogue
from causalmad.config import parse_spec, split_outside
from causalmad.detector import Detector
from causalmad.errors import SpecError, nearest
from causalmad.names import parse_detector

KINDS = ("signatures", "references", "calibrators", "tasks")
_CARD = ("mechanism", "source", "licence", "version", "size")


@dataclass(frozen=True)
class Part:
    """Something that can be checked.

    Attributes:
        kind: ``signatures``, ``references``, ``calibrators``, ``tasks`` or ``detectors``.
        text: what was typed.
        spec: the part itself.
    """

    kind: str
    text: str
    spec: Any


def find_part(text: str) -> Part:
    """The part that ``text`` means: ``name[key=value,...]``, ``signature+reference`` or ``module:name``.

    With a colon, the module is imported and its code runs, as the caller asked for.

    Raises:
        SpecError: when there is no such part, or what is found there is none.
    """
    name = text.partition("[")[0].strip()
    if ":" in name:
        return _imported(text)
    if len(split_outside(text, "+")) > 1:
        return Part("detectors", text, parse_detector(text))
    known = {entry.name: kind for kind in reversed(KINDS) for entry in catalogue(kind)}
    if name not in known:
        raise SpecError(
            f"no part and no task is called {name!r}",
            tries=[*nearest(name, known), "my_package.my_module:MySignature", "causalmad list"],
        )
    return Part(known[name], text, parse_spec(known[name], text))


def _imported(text: str) -> Part:
    """What stands at ``module:name``; a class is made with its defaults."""
    module, _, path = text.partition(":")
    likely = module.removesuffix(".py").strip("./").replace("/", ".")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever a user's module raises while it is run
        raise SpecError(
            f"module {module!r} of {text!r} could not be imported: {type(error).__name__}: {error}",
            causes=["a path in place of a module name", "another working folder"],
            tries=[*([f"{likely}:{path}"] if likely != module else []), f"python -c 'import {likely}'"],
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            public = [key for key in getattr(found, "__dict__", {}) if not key.startswith("_")]
            raise SpecError(f"no {name!r} in {module}", tries=[f"{module}:{key}" for key in nearest(name, public)])
        found = getattr(found, name)
    if isinstance(found, type):
        try:
            found = found()
        except TypeError as error:
            raise SpecError(
                f"{text} cannot be made without options: {error}",
                needed="a class whose options all have defaults, or an instance",
                tries=[f"mine = {path}(...) in {module}, and then {module}:mine"],
            ) from error
    return Part(_kind(found, text), text, found)


def _kind(spec: Any, text: str) -> str:
    """What a spec is, told from the methods that it has."""
    if isinstance(spec, Detector):
        return "detectors"
    fit = getattr(spec, "fit", None)
    if callable(fit):
        taken = inspect.signature(fit).parameters.values()
        ordered = [each for each in taken if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
        needed = [each.name for each in ordered if each.default is each.empty]
        if len(needed) > 1:  # a model and trusted inputs
            return "signatures"
        return "calibrators" if needed[:1] == ["scores"] else "references"
    if callable(getattr(spec, "load", None)):
        missing = [name for name in _CARD if not isinstance(getattr(spec, name, None), str)]
        if missing:
            raise SpecError(
                f"the task {text} does not say its {', '.join(missing)}",
                needed=f"texts {', '.join(_CARD)} on the class",
            )
        return "tasks"
    raise SpecError(
        f"{text} is a {type(spec).__name__}, which is no part",
        needed="fit(model, trusted, seed=0) of a signature, fit(X) of a reference, fit(scores) of a calibrator, "
        "load(seed) of a task, or a causalmad.Detector",
    )
