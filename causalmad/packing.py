"""Inputs as tensors and plain data, for a file, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.errors import StoreError
from causalmad.inputs import Block, Inputs, Rows


def pack(inputs: Inputs) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON data from which :func:`unpack` makes the same inputs again, in the same order of fields.

    Raises:
        StoreError: when a column holds something else than numbers, text, or lists of them.
    """
    tensors: dict[str, Tensor] = {}
    for number, rows in enumerate(inputs.fields.values()):
        if isinstance(rows, Tensor):
            tensors[f"field:{number}:rows"] = rows.contiguous()
        else:
            tensors[f"field:{number}:flat"] = torch.cat(list(rows))
            tensors[f"field:{number}:lengths"] = torch.tensor([len(row) for row in rows])
    data = {
        "ids": list(inputs.ids),
        "fields": list(inputs.fields),
        "blocks": {name: _plain_block(block) for name, block in inputs.blocks.items()},
        "columns": {name: _plain_column(name, values) for name, values in inputs.columns.items()},
    }
    return tensors, data


def unpack(tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> Inputs:
    """The inputs that :func:`pack` wrote."""
    fields: dict[int | str, Rows] = {}
    for number, name in enumerate(data["fields"]):
        key = f"field:{number}"
        if f"{key}:rows" in tensors:
            fields[name] = tensors[f"{key}:rows"]
        else:
            fields[name] = tuple(tensors[f"{key}:flat"].split(tensors[f"{key}:lengths"].tolist()))
    columns = {name: _column(values) for name, values in data["columns"].items()}
    blocks = {name: _block(block) for name, block in data["blocks"].items()}
    return Inputs(tuple(map(str, data["ids"])), fields, columns, blocks)


def _plain_block(block: Block) -> Any:
    return {"mask": block.tolist()} if isinstance(block, Tensor) else list(block)


def _block(block: Any) -> Block:
    return (
        torch.tensor(block["mask"], dtype=torch.bool) if isinstance(block, Mapping) else (int(block[0]), int(block[1]))
    )


def _plain_column(name: str, values: npt.NDArray[Any]) -> dict[str, Any]:
    """Values with what they were: an array of numbers with its type, or single values with where the tuples are."""
    plain: list[Any] = values.tolist()
    if values.dtype != object and values.dtype.kind in "biuf":
        return {"type": str(values.dtype), "values": plain}
    if not all(value is None or isinstance(value, (int, float, str, list, tuple)) for value in plain):
        raise StoreError(
            f"column {name!r} of the trusted inputs is neither numbers nor text, and cannot be saved",
            tries=["drop the column", "numbers, text, or lists of them"],
        )
    tuples = [row for row, value in enumerate(plain) if isinstance(value, tuple)]
    return {"type": "object", "values": plain, "tuples": tuples}


def _column(data: Mapping[str, Any]) -> npt.NDArray[Any]:
    values = data["values"]
    if data["type"] != "object":
        return np.array(values, dtype=data["type"])
    tuples = set(data["tuples"])
    array = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        array[row] = tuple(value) if row in tuples else value
    return array
