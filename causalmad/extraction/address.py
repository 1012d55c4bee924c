"""Addresses: what the numbers of a signature depend on, as digests."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import CodeType, FunctionType
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor, nn

from causalmad.config import to_config
from causalmad.digests import Keys, as_keys
from causalmad.errors import CacheError, CausalmadError
from causalmad.hypotheses.graph import Hypothesis
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.models.computed import computed
from causalmad.models.fingerprint import digest, value_digest
from causalmad.provenance import versions
from causalmad.signatures.base import FittedSignature

SCHEMA = 1

# What a field is rounded to in `Inputs.digests`; of other types the address holds the very bytes.
_EXACT = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object in memory, in its text


@dataclass(frozen=True)
class Address:
    """Where the rows of one fitted signature on one model are kept.

    Attributes:
        name: of the folder; equal exactly where the numbers are.
        about: what went into it, as JSON data, for people.
    """

    name: str
    about: Mapping[str, Any]


def address_of(signature: FittedSignature, spec: Any, model: OpenModel) -> Address:
    """The address of a fitted signature: its spec, what it learned, the model's weights and structure, our version.

    A saved signature gives the same numbers as the fitted one, bit by bit, so what would be saved is all they depend
    on; and the code of functions that the spec refers to by name.

    Raises:
        CacheError: when the signature cannot be written down.
    """
    if model.standing is not None:
        raise CacheError("a view of a model with standing edits has no address", tries=["cache=None"])
    tensors: dict[str, Tensor] = {}
    try:
        config = to_config("signatures", spec, tensors)
        state = signature.state()
    except (CausalmadError, AttributeError) as error:
        raise CacheError(
            f"signatures of a {type(spec).__name__} cannot be kept in a cache: {error}",
            needed="a signature that can be saved: its address is made of what would be saved",
            tries=["cache=None", "a signature of the catalogue", "functions at the top level of a module"],
        ) from error
    parameters = model.fingerprint()
    about: dict[str, Any] = {
        "schema": SCHEMA,
        "causalmad": versions()["causalmad"],
        "signature": config,
        "options": _tensors(tensors),
        "functions": [_function(function) for function in _functions(spec)],
        "learned": _digest(json.dumps([state.data, _tensors(state.tensors)], sort_keys=True)),
        "model": {
            "name": model.name,
            "parameters": parameters,
            "buffers": digest({name: value_digest(value) for name, value in computed(model.module)}),
            "structure": _structure(model.module),
        },
    }
    name = re.sub(r"[^a-z0-9-]", "", str(config["name"]))
    return Address(f"{name}-{_digest(json.dumps(about, sort_keys=True))}", about)


def row_keys(inputs: Inputs) -> Keys:
    """(n, 16) digest of each input: what the model is called with, and the columns that sites and claims may read.

    Ids are no part of it: no row depends on them.

    Raises:
        CacheError: when a column holds something that has no digest; it is named.
    """
    exact = [values for values in inputs.fields.values() if values[0].dtype not in _EXACT] if len(inputs) else []
    if not inputs.columns and not exact:
        return as_keys(b"".join(map(bytes.fromhex, inputs.digests)))
    found = []
    for row, content in enumerate(inputs.digests):
        whole = hashlib.blake2b(content.encode(), digest_size=16)
        for values in exact:
            whole.update(_bytes(values[row]))
        for name, column in inputs.columns.items():
            whole.update(f"|{name}=".encode())
            try:
                whole.update(_plain(column[row]))
            except TypeError as error:
                raise CacheError(
                    f"column {name!r} of input {inputs.ids[row]!r} cannot be part of an address: {error}",
                    needed="numbers, text, arrays, and lists or dicts of these",
                    tries=["drop the column", "cache=None"],
                ) from error
        found.append(whole.digest())
    return as_keys(b"".join(found))


def _plain(value: Any) -> bytes:
    """Bytes that differ where values do, of whatever may stand in a column."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return f"{type(value).__name__}:{value!r};".encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return b"bytes:%d:" % len(value) + value
    if isinstance(value, Mapping):
        return b"{" + b"".join(_plain(key) + _plain(value[key]) for key in value) + b"}"
    if isinstance(value, (list, tuple)):
        return b"[" + b"".join(map(_plain, value)) + b"]"
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"{value.dtype.str}{value.shape}:".encode() + np.ascontiguousarray(value).tobytes()
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Tensor):
        return _bytes(value)
    raise TypeError(f"a {type(value).__name__} has no digest")


def _bytes(value: Tensor) -> bytes:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return f"{value.dtype}{tuple(value.shape)}:".encode() + flat.view(torch.uint8).numpy().tobytes()


def _tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: hashlib.blake2b(_bytes(value), digest_size=16).hexdigest() for name, value in tensors.items()}


def _structure(module: nn.Module) -> str:
    """The classes of all parts and their options: what weights alone do not tell, such as the activation function."""
    written = getattr(getattr(module, "config", None), "to_dict", None)
    options = written() if callable(written) else {}
    parts = [f"{name}={type(part).__qualname__}({part.extra_repr()})" for name, part in module.named_modules()]
    text = "\n".join([*parts, json.dumps(options, sort_keys=True, default=str)])
    return _digest(_ADDRESS.sub("", text))


def _functions(spec: Any) -> Iterator[FunctionType]:
    """The functions that a spec holds, in its own order."""
    if isinstance(spec, FunctionType):
        yield spec
    elif isinstance(spec, (Hypothesis, nx.DiGraph)):
        graph = spec.to_networkx() if isinstance(spec, Hypothesis) else spec
        for _, data in graph.nodes(data=True):
            for value in data.values():
                yield from _functions(value)
    elif is_dataclass(spec) and not isinstance(spec, type):
        for each in fields(spec):
            yield from _functions(getattr(spec, each.name))
    elif isinstance(spec, (tuple, list)):
        for each in spec:
            yield from _functions(each)


def _function(function: FunctionType) -> str:
    """Digest of a function's code and of the defaults of its arguments; what it calls is not in it."""
    code, usual = _code(function.__code__), (function.__defaults__, function.__kwdefaults__)
    return code if usual == (None, None) else _digest(f"{code}{_ADDRESS.sub('', repr(usual))}")


def _code(code: CodeType) -> str:
    constants = [_constant(each) for each in code.co_consts]
    return _digest(f"{code.co_code.hex()}{constants}{code.co_names}{code.co_varnames}")


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _code(value)
    # The order in a set is another one in every process.
    return f"frozenset({sorted(map(repr, value))})" if isinstance(value, frozenset) else repr(value)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
