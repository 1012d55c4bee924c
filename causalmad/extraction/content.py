"""Digests of what an address is made of: values, code, and the make of a model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object in memory, in its text


def value_bytes(value: Any) -> bytes:
    """Bytes that differ where values do, of whatever may stand in a column."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return f"{type(value).__name__}:{value!r};".encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return b"bytes:%d:" % len(value) + value
    if isinstance(value, Mapping):
        return b"{" + b"".join(value_bytes(key) + value_bytes(value[key]) for key in value) + b"}"
    if isinstance(value, (list, tuple)):
        return b"[" + b"".join(map(value_bytes, value)) + b"]"
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"{value.dtype.str}{value.shape}:".encode() + np.ascontiguousarray(value).tobytes()
    if isinstance(value, np.ndarray):
        return value_bytes(value.tolist())
    if isinstance(value, Tensor):
        return tensor_bytes(value)
    raise TypeError(f"a {type(value).__name__} has no digest")


def tensor_bytes(value: Tensor) -> bytes:
    """Type, shape and content of a tensor."""
    flat = value.detach().cpu().contiguous().reshape(-1)
    return f"{value.dtype}{tuple(value.shape)}:".encode() + flat.view(torch.uint8).numpy().tobytes()


def structure(module: nn.Module) -> str:
    """The classes of all parts and their options: what weights alone do not tell, such as the activation function."""
    written = getattr(getattr(module, "config", None), "to_dict", None)
    options = written() if callable(written) else {}
    parts = [f"{name}={type(part).__qualname__}({part.extra_repr()})" for name, part in module.named_modules()]
    text = "\n".join([*parts, json.dumps(options, sort_keys=True, default=str)])
    return text_digest(_ADDRESS.sub("", text))


def function_digest(function: FunctionType) -> str:
    """Digest of a function's code and of the defaults of its arguments; what it calls is not in it."""
    code, usual = code_digest(function.__code__), (function.__defaults__, function.__kwdefaults__)
    return code if usual == (None, None) else text_digest(f"{code}{_ADDRESS.sub('', repr(usual))}")


def code_digest(code: CodeType) -> str:
    """Digest of compiled code: what it does, and the names that it uses."""
    constants = [_constant(each) for each in code.co_consts]
    return text_digest(f"{code.co_code.hex()}{constants}{code.co_names}{code.co_varnames}")


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return code_digest(value)
    # The order in a set is another one in every process.
    return f"frozenset({sorted(map(repr, value))})" if isinstance(value, frozenset) else repr(value)


def text_digest(text: str) -> str:
    """Digest of a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
