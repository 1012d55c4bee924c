"""Circumstances: what else the numbers of a signature depend on, and is usually not there."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from causalmad.errors import CacheError
from causalmad.extraction.content import code_digest, structure, text_digest, value_bytes
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.models.fingerprint import digest, parameter_digests

_KINDS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_PASSIVE = "transformers.utils.output_capturing"  # whose hooks only look, and stay once somebody has asked for outputs
_LIBRARIES = ("torch", "transformers", "accelerate")
_MOST = 10_000  # things that a hook may refer to


def circumstances(module: nn.Module) -> dict[str, Any]:
    """Hooks that somebody put on a model, and autocast where it is on; usually nothing.

    Raises:
        CacheError: for a hook that depends on what cannot be written down.
    """
    found: dict[str, Any] = {}
    if hooks := list(_hooks(module)):
        found["hooks"] = hooks
    devices = {value.device.type for value in (*module.parameters(), *module.buffers())} | {"cpu"}
    # Weights that are elsewhere until a layer runs will run on a GPU.
    casts = {kind: _autocast(kind) for kind in sorted({"cuda" if kind == "meta" else kind for kind in devices})}
    if any(casts.values()):
        found["autocast"] = {kind: cast for kind, cast in casts.items() if cast}
    return found


def main_argument(model: OpenModel, inputs: Inputs) -> str:
    """The argument that the main field is passed as, where it is another than the first one of the model."""
    name = next(iter(inputs.fields))
    if not isinstance(name, str):
        return ""
    try:
        taken = list(inspect.signature(type(model.module).forward).parameters.values())[1:]
    except (AttributeError, TypeError, ValueError):
        taken = []
    named = taken and taken[0].kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = taken[0].name if named and not (model.positional and name == "input_ids") else "input_ids"
    return "" if name == first else name


def _autocast(kind: str) -> str:
    try:
        return str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else ""
    except RuntimeError:  # a device that knows no autocast
        return ""


def _hooks(module: nn.Module) -> Iterator[str]:
    everywhere = torch.nn.modules.module
    for kind in _KINDS:
        for hook in getattr(everywhere, f"_global{kind}", {}).values():
            yield f"every module {kind}: {_written(hook, module, 'every module')}"
    for name, part in module.named_modules():
        for kind in _KINDS:
            for hook in getattr(part, kind, {}).values():
                if getattr(hook, "__module__", None) != _PASSIVE:
                    yield f"{name} {kind}: {_written(hook, module, name or 'the model')}"


def _written(hook: Callable[..., Any], module: nn.Module, where: str) -> str:
    try:
        return _Reader(module).text(hook)
    except (TypeError, RecursionError) as error:
        raise CacheError(
            f"the hook {_name(hook)} on {where} cannot be part of an address: {error}",
            needed="a hook that depends on numbers, text, arrays, tensors, modules and functions alone",
            causes=["a hook that steers or records, left on the model"],
            tries=["take the hook off: handle.remove()", "cache=None"],
        ) from error


class _Reader:
    """Writes down what a hook is and depends on: code, and the values that it holds or names.

    Args:
        module: the model, whose parts are known by their names.
    """

    def __init__(self, module: nn.Module) -> None:
        self.parts = {id(part): name for name, part in module.named_modules()}
        self.seen: dict[int, Any] = {}  # kept alive, so that no id is used twice

    def text(self, value: Any) -> str:
        if id(value) in self.parts:
            return f"part {self.parts[id(value)]!r}"
        if isinstance(value, (type, ModuleType, BuiltinFunctionType, logging.Logger)):
            return _name(value)
        if value is None or isinstance(value, (bool, int, float, str, bytes)):
            return repr(value)
        if id(value) in self.seen:
            return "again"
        self.seen[id(value)] = value
        if len(self.seen) > _MOST:
            raise TypeError(f"it refers to more than {_MOST:,} things")
        return self._inside(value)

    def _inside(self, value: Any) -> str:
        if isinstance(value, nn.Module):
            return f"{structure(value)}{digest(parameter_digests(value))}"
        if isinstance(value, FunctionType):
            return f"{_name(value)}:{code_digest(value.__code__)}{self._all(_held(value))}"
        if isinstance(value, MethodType):
            return f"{self.text(value.__func__)} of {self.text(value.__self__)}"
        if isinstance(value, partial):
            return self._all([value.func, value.args, value.keywords])
        if isinstance(value, Mapping):
            return self._all(pair for pair in value.items())
        if isinstance(value, (list, tuple)):
            return self._all(value)
        if isinstance(value, (set, frozenset)):
            return str(sorted(map(self.text, value)))
        if hasattr(value, "__dict__") and not isinstance(value, torch.Tensor):
            own = type(value).__module__.partition(".")[0] not in _LIBRARIES
            code = [each for each in vars(type(value)).values() if own and isinstance(each, FunctionType)]
            return f"{_name(type(value))}{self._all(code)}{self.text(vars(value))}"
        return text_digest(value_bytes(value).hex())

    def _all(self, values: Iterable[Any]) -> str:
        return f"({', '.join(map(self.text, values))})"


def _held(function: FunctionType) -> list[Any]:
    """The values that a function has from where it was made: defaults, its closure, and globals that it names."""
    found = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items()]
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not filled yet
            found.append("empty")
    for name in sorted(_names(function.__code__) & function.__globals__.keys()):
        value = function.__globals__[name]
        # What it calls is not in it, as nowhere: only which code that is.
        called = isinstance(value, FunctionType)
        found.append((name, f"{_name(value)}:{code_digest(value.__code__)}" if called else value))
    return found


def _names(code: CodeType) -> set[str]:
    inner = [_names(each) for each in code.co_consts if isinstance(each, CodeType)]
    return set(code.co_names).union(*inner)


def _name(value: Any) -> str:
    named = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or type(value).__qualname__
    return f"{getattr(value, '__module__', None) or type(value).__module__}.{named}"
