"""Inputs from JSON lines, one object a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causalmad.errors import InputsError, SpecError

if TYPE_CHECKING:
    from torch import Tensor

    from causalmad.inputs import Block, Inputs
    from causalmad.models import OpenModel

_TEXTS = ("text", "prompt", "input", "sentence")
FORMS = '{"id": "a", "text": "..."}, {"input_ids": [5, 3, 8]} or {"x": [0.1, 0.2]}'


@dataclass(frozen=True)
class Row:
    """One line of a file: where it stands, and its object."""

    place: str
    values: dict[str, Any]


def read_rows(path: str) -> list[Row]:
    """The objects of a file of JSON lines (``-`` is standard input); blank lines are left out.

    Raises:
        InputsError: when a line is no JSON object (with its number), or there is none.
    """
    source = "standard input" if path == "-" else path
    rows = []
    for number, line in _lines(path):
        place = f"{source}, line {number}"
        try:
            values = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse)
        except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError as well
            raise InputsError(f"{place} is no JSON: {error}", needed=f"one object a line, such as {FORMS}") from error
        if not isinstance(values, dict):
            raise InputsError(f"{place} is a {type(values).__name__}, no object", needed=f"such as {FORMS}")
        rows.append(Row(place, values))
    if not rows:
        raise InputsError(f"{source} has no lines", needed="at least one input", tries=[FORMS])
    return rows


def as_inputs(rows: list[Row], model: OpenModel, blocks: Mapping[str, Block] | None = None) -> Inputs:
    """The rows as inputs of a model.

    A text field (``text``, ``prompt``, ``input``, ``sentence``; any, where there is no list) goes through the
    tokenizer; ``input_ids`` are tokens; lists under the name of an argument of the model are passed by that name;
    otherwise the one field that holds lists of numbers is the first positional argument. Lists are floats, except under
    names that end in ``_ids`` or ``_mask``. ``id`` names the input, and whatever is left is a column that the model
    never sees.

    Raises:
        InputsError: when rows differ in their fields or shapes, ids stand twice, or no field can be meant.
    """
    from causalmad.inputs import Inputs

    fields = _fields(rows)
    ids = _ids(rows)
    table: dict[int | str, Any] = {name: [row.values[name] for row in rows] for name in fields}
    lists = [name for name in fields if isinstance(rows[0].values[name], list)]
    named = [name for name in lists if name in model.accepts or name == "input_ids"]
    for name in named:
        whole = name.endswith(("_ids", "_mask"))
        table[name] = [_whole(row, name) for row in rows] if whole else _floats(rows, name)
    texts = [name for name in fields if isinstance(rows[0].values[name], str) and (not lists or name in _TEXTS)]
    if not named and not texts:
        if len(lists) != 1:
            raise InputsError(
                f"{rows[0].place}: {'several fields hold' if lists else 'no field holds'} a list of numbers",
                needed=f"such as {FORMS}; one list, or lists named like the model's arguments",
                tries=sorted(model.accepts)[:4],
            )
        table = {0: _floats(rows, lists[0]), **{name: table[name] for name in fields if name != lists[0]}}
    return Inputs.of(table, tokenizer=model.tokenizer, accepts=model.accepts, blocks=blocks, ids=ids)


def read_blocks(texts: Iterable[str]) -> dict[str, tuple[int, int]]:
    """``NAME=START:STOP`` -> the named half-open range of an input's last axis.

    Raises:
        SpecError: when a text is something else.
    """
    found = {}
    for text in texts:
        name, _, span = text.rpartition("=")
        start, _, stop = span.partition(":")
        if not (name and start.isdecimal() and stop.isdecimal()):
            raise SpecError(f"{text!r} is no block", needed="NAME=START:STOP", tries=["image A=0:64"])
        found[name] = (int(start), int(stop))
    return found


def _fields(rows: list[Row]) -> list[str]:
    """Names of the fields but ``id``, the same in all rows."""
    first = set(rows[0].values)
    for row in rows[1:]:
        differing = sorted(first.symmetric_difference(row.values))
        if differing:
            raise InputsError(
                f"{row.place} has other fields than {rows[0].place}: {', '.join(map(repr, differing))} in one only",
                needed="the same fields in every line",
            )
    return [name for name in rows[0].values if name != "id"]


def _ids(rows: list[Row]) -> list[str] | None:
    if "id" not in rows[0].values:
        return None
    seen: dict[str, str] = {}
    for row in rows:
        key = row.values["id"]
        if not isinstance(key, (str, int)) or isinstance(key, bool):
            raise InputsError(f"{row.place}: id {key!r}", needed="a text or a whole number")
        if str(key) in seen:
            raise InputsError(f"{row.place}: id {str(key)!r} stands in {seen[str(key)]} as well", needed="unique ids")
        seen[str(key)] = row.place
    return list(seen)


def _floats(rows: list[Row], name: str) -> list[Tensor]:
    import torch

    tensors: list[Tensor] = []
    for row in rows:
        try:
            tensors.append(torch.tensor(row.values[name], dtype=torch.float32))
        except (TypeError, ValueError) as error:
            raise InputsError(f"{row.place}: field {name!r} is no array of numbers: {error}") from error
        if tensors[-1].shape != tensors[0].shape:
            shapes = tuple(tensors[-1].shape), tuple(tensors[0].shape)
            raise InputsError(
                f"{row.place}: field {name!r} has shape {shapes[0]}, in {rows[0].place} {shapes[1]}",
                needed="one shape",
            )
    return tensors


def _whole(row: Row, name: str) -> Tensor:
    import torch

    values = row.values[name]
    if not isinstance(values, list) or any(not isinstance(v, int) or isinstance(v, bool) for v in values):
        raise InputsError(f"{row.place}: field {name!r} is no list of whole numbers", needed="such as [5, 3, 8]")
    return torch.tensor(values, dtype=torch.long)


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Numbers (from 1) and contents of the lines that are not blank.

    Raises:
        InputsError: when the file cannot be read.
    """
    if path == "-":
        yield from _numbered(sys.stdin.buffer)
        return
    try:
        with Path(path).open("rb") as file:
            yield from _numbered(file)
    except OSError as error:
        raise InputsError(f"{path} cannot be read: {error.strerror}", needed="a file of JSON lines, or -") from error


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line
