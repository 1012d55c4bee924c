"""Addresses: what the numbers of a signature depend on, as digests."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import FunctionType
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from causalmad.config import to_config
from causalmad.digests import Keys, as_keys
from causalmad.errors import CacheError, CausalmadError
from causalmad.extraction.circumstances import circumstances
from causalmad.extraction.content import function_digest, structure, tensor_bytes, text_digest, value_bytes
from causalmad.hypotheses.graph import Hypothesis
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.models.computed import computed
from causalmad.models.fingerprint import digest, value_digest
from causalmad.provenance import versions
from causalmad.signatures.base import FittedSignature

SCHEMA = 2  # 1: activations whose modules put channels elsewhere were averaged over other axes

# What a field is rounded to in `Inputs.digests`; of other types the address holds the very bytes.
_EXACT = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)


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
    on; and the code of functions that the spec refers to by name, hooks on the model, and autocast.

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
        "functions": [function_digest(function) for function in _functions(spec)],
        "learned": text_digest(json.dumps([state.data, _tensors(state.tensors)], sort_keys=True)),
        "model": {
            "name": model.name,
            "parameters": parameters,
            "buffers": digest({name: value_digest(value) for name, value in computed(model.module)}),
            "structure": structure(model.module),
        },
        **circumstances(model.module),  # usually none
    }
    name = re.sub(r"[^a-z0-9-]", "", str(config["name"]))
    return Address(f"{name}-{text_digest(json.dumps(about, sort_keys=True))}", about)


def row_keys(inputs: Inputs, argument: str = "") -> Keys:
    """(n, 16) digest of each input: what the model is called with, and the columns that sites and claims may read.

    Ids are no part of it: no row depends on them.

    Args:
        inputs: the inputs.
        argument: which argument of the model the main field is, where it is not the first.

    Raises:
        CacheError: when a column holds something that has no digest; it is named.
    """
    exact = [values for values in inputs.fields.values() if values[0].dtype not in _EXACT] if len(inputs) else []
    if not inputs.columns and not exact and not argument:
        return as_keys(b"".join(map(bytes.fromhex, inputs.digests)))
    found = []
    for row, content in enumerate(inputs.digests):
        whole = hashlib.blake2b(content.encode(), digest_size=16)
        if argument:
            whole.update(f"|as {argument}|".encode())
        for values in exact:
            whole.update(tensor_bytes(values[row]))
        for name, column in inputs.columns.items():
            whole.update(f"|{name}=".encode())
            try:
                whole.update(value_bytes(column[row]))
            except TypeError as error:
                raise CacheError(
                    f"column {name!r} of input {inputs.ids[row]!r} cannot be part of an address: {error}",
                    needed="numbers, text, arrays, and lists or dicts of these",
                    tries=["drop the column", "cache=None"],
                ) from error
        found.append(whole.digest())
    return as_keys(b"".join(found))


def _tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: hashlib.blake2b(tensor_bytes(value), digest_size=16).hexdigest() for name, value in tensors.items()}


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
