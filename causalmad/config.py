"""Specs as text and as JSON: ``name[key=value,...]`` on the command line, ``{"name", "options"}`` in files."""

from __future__ import annotations

import importlib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any

from causalmad.catalogue import KINDS, Entry, catalogue, find, name_of
from causalmad.errors import SpecError, nearest

_NESTED = ("targets", "signatures", "references", "calibrators")  # parts that options hold
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "none",
    Any: "anything",
}
_SCALARS = (bool, int, float, str, type(None))
_PARTS = tuple(f"causalmad.{folder}" for folder in ("signatures", "references", "calibration", "targets"))

# Option values that are no parts of the catalogue: the module that writes them and reads them back, found by name since
# it stands floors above this one. It has `writes(value)`, `to_data(value)` and `from_data(tensors, data, functions)`.
_WRITERS = {"hypothesis": "causalmad.hypotheses.written"}


# Options of scikit-learn's estimators that change no number, and print to standard output, where results may be
# written: whoever reads a file has not asked for that.
_SPEECH = ("verbose", "verbose_interval")


def parse_spec(kind: str, text: str) -> Any:
    """The spec that ``name[key=value,...]`` stands for.

    Args:
        kind: the catalogue in which the name is looked up.
        text: for example ``attribution-patching[units=blocks,steps=8]``. A list is written ``a;b``, and a target as
            its own ``name[...]``.

    Raises:
        SpecError: on an unknown name or option (with the nearest three), or a value of the wrong kind.
    """
    name, options = split_spec(text)
    entry = find(kind, name)
    cls = entry.load()
    hints = _hints(cls)
    values: dict[str, object] = entry.defaults
    for key, raw in options.items():
        _require_option(entry, cls, key)
        values[key] = _from_text(raw, hints.get(key, Any), f"{name}[{key}]")
    return _build(entry, cls, values)


def split_spec(text: str) -> tuple[str, dict[str, str]]:
    """``name[key=value,...]`` as its name and its options, still as text.

    Raises:
        SpecError: when the brackets or the ``key=value`` pairs are malformed.
    """
    name, bracket, rest = text.strip().partition("[")
    if not bracket:
        return name, {}
    if not rest.endswith("]"):
        raise SpecError(f"{text!r} has no closing bracket", needed="name[key=value,...]")
    options: dict[str, str] = {}
    for piece in filter(None, split_outside(rest[:-1], ",")):
        key, equals, value = piece.partition("=")
        if not equals or not key.strip() or "[" in key:
            tries = [f"{name}[{piece}=...]"] if "[" not in piece else []
            if options:  # a comma in place of the semicolon of a list
                last = list(options)[-1]
                tries.insert(0, f"{name}[{last}={options[last]};{piece.strip()}]")
            raise SpecError(f"{piece!r} in {text!r} is no option", needed="key=value, a list as key=a;b", tries=tries)
        if key.strip() in options:
            raise SpecError(f"option {key.strip()!r} stands twice in {text!r}")
        options[key.strip()] = value.strip()
    return name, options


def split_outside(text: str, separator: str) -> list[str]:
    """``text`` cut at every ``separator`` that stands outside square brackets.

    Raises:
        SpecError: when brackets are not closed, or closed before they are opened.
    """
    pieces, depth = [""], 0
    if text.count("[") != text.count("]"):
        missing = "closing" if text.count("[") > text.count("]") else "opening"
        raise SpecError(f"{text!r} has no {missing} bracket", needed="name[key=value,...]")
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == separator and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return pieces


def to_config(kind: str, spec: object, tensors: dict[str, Any] | None = None) -> dict[str, Any]:
    """A spec as JSON data: its catalogue name and every option, nested specs included.

    Args:
        kind: the catalogue in which the spec stands.
        spec: what to write.
        tensors: where the arrays inside options go, under the names that the JSON data refers to.

    Raises:
        SpecError: when the spec is not in the catalogue, or an option is a function.
        HypothesisError: when an option is a hypothesis with a function that has no name.
    """
    arrays = {} if tensors is None else tensors
    return {"name": name_of(kind, spec), "options": {k: _to_json(v, k, arrays) for k, v in _options(spec).items()}}


def from_config(
    kind: str, config: Mapping[str, Any], tensors: Mapping[str, Any] | None = None, functions: Any = None
) -> Any:
    """The spec that :func:`to_config` wrote; only names in the catalogue are ever imported.

    Scikit-learn's estimators are as silent as they are by default, whatever the data say of ``verbose``.

    Args:
        kind: the catalogue in which the spec stands.
        config: the JSON data.
        tensors: the arrays inside options.
        functions: the hypothesis that an option holds, or its functions by name, where they are the user's own.

    Raises:
        SpecError: on malformed data, an unknown name or an unknown option.
        HypothesisError: when a function of a hypothesis is missing.
    """
    name, options = config.get("name"), config.get("options", {})
    if not isinstance(name, str) or not isinstance(options, Mapping):
        raise SpecError(f"{str(config)[:80]!r} is no spec", needed='{"name": text, "options": {...}}')
    entry = find(kind, name)
    cls = entry.load()
    for key in options:
        _require_option(entry, cls, key)
    heard = [key for key in options if not (key in _SPEECH and entry.module.startswith("sklearn."))]
    values = {key: _from_json(options[key], tensors or {}, functions) for key in heard}
    return _build(entry, cls, {**entry.defaults, **values})


def describe(spec: object) -> dict[str, object]:
    """The options of a spec that differ from its defaults, for tables and titles."""
    if not is_dataclass(spec):
        return {}
    defaults = {f.name: f.default for f in fields(spec) if f.default is not MISSING}
    defaults |= {f.name: f.default_factory() for f in fields(spec) if f.default_factory is not MISSING}
    return {k: v for k, v in _options(spec).items() if k not in defaults or defaults[k] != v}


def require_options(spec: object) -> None:
    """Nothing, where each number, text or None among a part's options is of a kind that its annotation names.

    Whatever else stands there (functions, arrays, other objects) is left to the part itself; parts inside it are
    looked at as well.

    Args:
        spec: the part; anything that is none of the library's own is left alone.

    Raises:
        SpecError: otherwise, with the option.
    """
    if not is_dataclass(spec) or isinstance(spec, type) or not type(spec).__module__.startswith(_PARTS):
        return
    hints = _hints(type(spec))
    for key, value in _options(spec).items():
        if isinstance(value, _SCALARS) and not _fits(value, hints.get(key, Any)):
            needed = _in_words(hints[key]).replace(", several as a;b", ", or several of it as a tuple")
            raise SpecError(f"{type(spec).__name__}({key}={value!r})", needed=needed)
        for inner in value if isinstance(value, (tuple, list)) else (value,):
            require_options(inner)


def _fits(value: object, hint: Any) -> bool:
    """Whether an annotation takes a number, a text or None."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, member) for member in typing.get_args(hint))
    if origin is typing.Literal:  # which of them is the part's own business
        return any(isinstance(value, type(choice)) for choice in typing.get_args(hint))
    if origin is tuple:  # one text for several is refused, or taken, by the part itself
        return isinstance(value, str)
    kinds: dict[Any, Any] = {int: int, float: (int, float), bool: int, str: str, type(None): type(None)}
    return isinstance(value, kinds[hint]) if hint in _WORDS and hint is not Any else True


def _options(spec: object) -> dict[str, object]:
    if is_dataclass(spec):
        return {f.name: getattr(spec, f.name) for f in fields(spec) if f.init}
    if hasattr(spec, "get_params"):  # scikit-learn's estimators
        return dict(spec.get_params(deep=False))
    return {}


def _require_option(entry: Entry, cls: type, key: str) -> None:
    known = [f.name for f in fields(cls) if f.init] if is_dataclass(cls) else _sklearn_options(cls)
    if key not in known:
        close = nearest(key, known) if known else []
        raise SpecError(f"{entry.name} has no option {key!r}", tries=close, needed="" if known else "no options at all")


def _sklearn_options(cls: type) -> list[str]:
    return list(cls().get_params(deep=False)) if hasattr(cls, "get_params") else []


def _build(entry: Entry, cls: type, values: dict[str, object]) -> object:
    try:
        return cls(**values)
    except TypeError as error:
        raise SpecError(f"{entry.name} cannot be made from {values}: {error}") from error


@cache
def _hints(cls: type) -> dict[str, Any]:
    if not is_dataclass(cls):
        return {}
    try:
        return typing.get_type_hints(cls)
    except NameError:  # annotations that exist for type checkers only
        return {f.name: Any for f in fields(cls)}


def _from_text(raw: str, hint: Any, where: str) -> object:
    """A value from text, by the option's annotation: the first member of a union that fits."""
    for kind in _alternatives(hint, raw):
        fits, value = _read(raw, kind)
        if fits:
            return value
    causes, tries = _unknown(raw, hint)
    raise SpecError(f"{where}={raw!r} does not fit", needed=_in_words(hint), causes=causes, tries=tries)


def _in_words(hint: Any) -> str:
    """What an option's annotation takes, for people."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if not (member is int and float in typing.get_args(hint))]
        return " or ".join(filter(None, dict.fromkeys(map(_in_words, members))))
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        inner = next((member for member in typing.get_args(hint) if member is not Ellipsis), Any)
        return f"{_in_words(inner)}, several as a;b"
    if typing.get_origin(hint) is not None:  # a function, which no text stands for
        return ""
    return _WORDS.get(hint) or " or ".join(f"a {kind[:-1]}" for kind in _kinds(hint))


def _kinds(hint: Any) -> tuple[str, ...]:
    """The kinds of parts that an annotation takes: none for numbers and text."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType, tuple):
        members = (member for member in typing.get_args(hint) if member is not Ellipsis)
        return tuple(dict.fromkeys(kind for member in members for kind in _kinds(member)))
    if origin is not None or hint in _WORDS:
        return ()
    module = str(getattr(hint, "__module__", ""))
    named = tuple(kind for kind in _NESTED if module.startswith(f"causalmad.{kind}"))
    return named or _NESTED


def _unknown(raw: str, hint: Any) -> tuple[list[str], list[str]]:
    """What is wrong with a value, and the nearest three that would be right, where there are names to choose from."""
    kinds = _kinds(hint)
    choices = [str(choice) for member in (hint, *typing.get_args(hint)) for choice in _choices(member)]
    if not kinds:
        return [], nearest(raw, choices) if choices else []
    known = [entry.name for kind in kinds for entry in catalogue(kind)]
    for piece in split_outside(raw, ";"):
        name = piece.partition("[")[0].strip()
        if name not in known:
            which = " or ".join(kind[:-1] for kind in kinds)
            return [f"no {which} is called {name!r}"], nearest(name, [*known, *choices])
    return [], []


def _choices(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def _alternatives(hint: Any, raw: str) -> list[Any]:
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return [hint]

    def turn(member: Any) -> int:
        if typing.get_origin(member) is tuple:  # a list only where there is something to separate
            return 0 if ";" in raw else 3
        return {float: 1, str: 2}.get(member, 0)  # whole numbers are floats as well, and text fits everything

    return sorted(typing.get_args(hint), key=turn)


def _read(raw: str, kind: Any) -> tuple[bool, object]:
    if kind is Any:
        return True, _guess(raw)
    if typing.get_origin(kind) is typing.Literal:
        found = [choice for choice in typing.get_args(kind) if str(choice).lower() == raw.lower()]
        return bool(found), found[0] if found else None
    if typing.get_origin(kind) is tuple:
        inner = next((a for a in typing.get_args(kind) if a is not Ellipsis), Any)
        items = [_read(item, inner) for item in filter(None, split_outside(raw, ";"))]
        return all(fits for fits, _ in items), tuple(value for _, value in items)
    if kind in (type(None), bool):
        words = {"none": None} if kind is type(None) else {"true": True, "false": False, "yes": True, "no": False}
        return raw.lower() in words, words.get(raw.lower())
    if kind in (int, float):
        try:
            return True, kind(raw)
        except ValueError:
            return False, None
    if kind is str:
        return True, raw
    return _nested(raw)


def _guess(raw: str) -> object:
    for kind in (type(None), bool, int, float):
        fits, value = _read(raw, kind)
        if fits:
            return value
    return raw


def _nested(raw: str) -> tuple[bool, object]:
    """A part inside a part: a target, or another spec; the kind is the first that has the name."""
    name = raw.partition("[")[0].strip()
    for kind in _NESTED:
        if any(entry.name == name for entry in catalogue(kind)):
            return True, parse_spec(kind, raw)
    return False, None


def _to_json(value: object, key: str, tensors: dict[str, Any]) -> Any:
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, (tuple, list)):
        return [_to_json(item, key, tensors) for item in value]
    for kind in KINDS:
        try:
            return {"kind": kind, **to_config(kind, value, tensors)}
        except SpecError:
            continue
    for kind, module in _WRITERS.items():
        writer = importlib.import_module(module)
        if writer.writes(value):
            arrays, data = writer.to_data(value)
            tensors.update(arrays)
            return {"kind": kind, "name": str(getattr(value, "name", kind)), "data": data}
    raise SpecError(
        f"option {key}={value!r} cannot be written down",
        needed="numbers, text, lists of them, or parts of the catalogue",
        causes=["a function or a lambda: code is never saved, so that loading a file can't run any"],
        tries=["a named target such as causalmad.targets.TopMargin()", "your own part, declared as an entry point"],
    )


def _from_json(value: Any, tensors: Mapping[str, Any], functions: Any) -> object:
    if isinstance(value, list):
        return tuple(_from_json(item, tensors, functions) for item in value)
    if isinstance(value, dict):
        kind = value.get("kind")
        if isinstance(kind, str) and kind in _WRITERS:
            found: object = importlib.import_module(_WRITERS[kind]).from_data(tensors, value.get("data"), functions)
            return found
        if kind not in KINDS:
            known = ", ".join([*KINDS, *_WRITERS])
            raise SpecError(f"{str(value)[:80]!r} is no spec", needed=f"a kind, one of {known}")
        return from_config(kind, value, tensors, functions)
    return value
