"""Inputs from JSON lines, one object a line: a whole file, or a stream of any length a chunk at a time."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causalmad.errors import InputsError, SpecError

if TYPE_CHECKING:
    import torch
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
    return list(each_row(path))


def each_row(path: str) -> Iterator[Row]:
    """The same one by one, so that a stream may be of any length; the first is read at once.

    Raises:
        InputsError: as :func:`read_rows` does.
    """
    rows = _rows(path)
    first = next(rows, None)
    if first is None:
        raise InputsError(f"{_source(path)} has no lines", needed="at least one input", tries=[FORMS])
    return chain([first], rows)


def chunked(
    rows: Iterable[Row], model: OpenModel, blocks: Mapping[str, Block] | None = None, *, size: int
) -> Iterator[Inputs]:
    """Rows as inputs, ``size`` at a time: the same ids and checks as if they were read at once.

    In memory stay one chunk and, for each input that was read, a hash of its id, which takes 32 bytes.

    Args:
        rows: of a file or a stream.
        model: what they are inputs of.
        blocks: named parts of the inputs.
        size: inputs a chunk, at most.

    Raises:
        InputsError: as :func:`as_inputs` does, whichever lines do not fit each other.
    """
    from causalmad.digests import Counts, as_keys

    remaining = iter(rows)
    first: Row | None = None
    counts = Counts()
    while chunk := list(islice(remaining, size)):
        first = first or chunk[0]
        inputs = as_inputs(chunk, model, blocks, like=first)
        if "id" in first.values:
            before = counts.add(as_keys(b"".join(map(_short, inputs.ids))))
            if before.any():
                again = int(before.argmax())
                place, key = chunk[again].place, inputs.ids[again]
                raise InputsError(f"{place}: id {key!r} stands in an earlier line as well", needed="unique ids")
        else:
            # As causalmad.inputs.content_ids does: repeats of a content get a running number.
            keys = [digest[:12] for digest in inputs.digests]
            before = counts.add(as_keys(b"".join(bytes.fromhex(key).ljust(16, b"\0") for key in keys)))
            inputs = inputs.named([key if not n else f"{key}.{n + 1}" for key, n in zip(keys, before.tolist())])
        yield inputs


def as_inputs(
    rows: list[Row], model: OpenModel, blocks: Mapping[str, Block] | None = None, *, like: Row | None = None
) -> Inputs:
    """The rows as inputs of a model.

    A text field (``text``, ``prompt``, ``input``, ``sentence``; any, where there is one and no list) goes through the
    tokenizer; ``input_ids`` are tokens; lists under the name of an argument of the model are passed by that name;
    otherwise the one field that holds lists of numbers is the first positional argument. Lists are floats, except under
    names that end in ``_ids`` or ``_mask``. ``id`` names the input, and whatever is left is a column that the model
    never sees.

    Args:
        rows: one for each input.
        model: what they are inputs of.
        blocks: named parts of the inputs.
        like: the row whose fields and shapes all have; by default the first.

    Raises:
        InputsError: when rows differ in their fields or shapes, ids stand twice, or no field can be meant.
    """
    from causalmad.inputs import Inputs

    like = like or rows[0]
    fields = _fields(rows, like)
    ids = _ids(rows)
    table: dict[int | str, Any] = {name: [row.values[name] for row in rows] for name in fields}
    lists = [name for name in fields if isinstance(like.values[name], list)]
    named = [name for name in lists if name in model.accepts or name == "input_ids"]
    for name in named:
        whole = name.endswith(("_ids", "_mask"))
        table[name] = [_whole(row, name) for row in rows] if whole else _floats(rows, name, like, model)
    texts = [name for name in fields if isinstance(like.values[name], str) and (not lists or name in _TEXTS)]
    if texts and not named:
        _require_texts(rows, fields, like)
    if not named and not texts:
        if len(lists) != 1:
            raise InputsError(
                f"{like.place}: {'several fields hold' if lists else 'no field holds'} a list of numbers",
                needed=f"such as {FORMS}; one list, or lists named like the model's arguments",
                tries=sorted(model.accepts)[:4],
            )
        table = {0: _floats(rows, lists[0], like, model), **{name: table[name] for name in fields if name != lists[0]}}
    return Inputs.of(table, tokenizer=model.tokenizer, accepts=model.accepts, blocks=blocks, ids=ids, dtype=model.dtype)


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


def _fields(rows: list[Row], like: Row) -> list[str]:
    """Names of the fields but ``id``, the same in all rows."""
    first = set(like.values)
    for row in rows:
        differing = sorted(first.symmetric_difference(row.values))
        if differing:
            raise InputsError(
                f"{row.place} has other fields than {like.place}: {', '.join(map(repr, differing))} in one only",
                needed="the same fields in every line",
            )
    return [name for name in like.values if name != "id"]


def _require_texts(rows: list[Row], fields: list[str], like: Row) -> None:
    """The field that is read as the text is the same one in all rows, whichever comes first."""
    order = list(dict.fromkeys([*(name for name in _TEXTS if name in fields), *fields]))
    chosen = next(name for name in order if isinstance(like.values[name], str))
    for name in order[: order.index(chosen) + 1]:
        for row in rows:
            if isinstance(row.values[name], str) != (name == chosen):
                kinds = f"is a {type(row.values[name]).__name__}, in {like.place} a {type(like.values[name]).__name__}"
                raise InputsError(f"{row.place}: field {name!r} {kinds}", needed="one kind in all lines")


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


def _short(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _floats(rows: list[Row], name: str, like: Row, model: OpenModel) -> list[Tensor]:
    import torch

    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    wanted = _array(like, name, dtype).shape
    tensors: list[Tensor] = []
    for row in rows:
        tensors.append(_array(row, name, dtype))
        if tensors[-1].shape != wanted:
            raise InputsError(
                f"{row.place}: field {name!r} has shape {tuple(tensors[-1].shape)}, in {like.place} {tuple(wanted)}",
                needed="one shape",
            )
    return tensors


def _array(row: Row, name: str, dtype: torch.dtype) -> Tensor:
    import torch

    try:
        found = torch.tensor(row.values[name], dtype=dtype)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputsError(f"{row.place}: field {name!r} is no array of numbers: {error}") from error
    if not torch.isfinite(found).all():
        raise InputsError(
            f"{row.place}: field {name!r} has a number that is too large for {str(dtype).removeprefix('torch.')}"
        )
    return found


def _whole(row: Row, name: str) -> Tensor:
    import torch

    values = row.values[name]
    if not isinstance(values, list) or any(not isinstance(v, int) or isinstance(v, bool) for v in values):
        raise InputsError(f"{row.place}: field {name!r} is no list of whole numbers", needed="such as [5, 3, 8]")
    try:
        return torch.tensor(values, dtype=torch.long)
    except (OverflowError, ValueError, RuntimeError) as error:
        raise InputsError(f"{row.place}: field {name!r} has a number that no token can have: {error}") from error


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which no name stands twice: the first of two values would be lost without a word."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return found


def _source(path: str) -> str:
    return "standard input" if path == "-" else path


def _rows(path: str) -> Iterator[Row]:
    for number, line in _lines(path):
        place = f"{_source(path)}, line {number}"
        try:
            text = line.decode("utf-8-sig").rstrip()
            values = json.loads(text, parse_constant=_refuse, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError as well
            # JSON's own message counts lines, and this is but one.
            said = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise InputsError(
                f"{place} is no JSON: {said}", needed=f"one object a line, such as {FORMS}", tries=_turned(path)
            ) from error
        if not isinstance(values, dict):
            raise InputsError(
                f"{place} is a {type(values).__name__}, no object", needed=f"such as {FORMS}", tries=_turned(path)
            )
        yield Row(place, values)


def _turned(path: str) -> list[str]:
    """How a file of another kind becomes JSON lines, where its name says which kind it is."""
    file, lines = Path(path), f"{Path(path).stem}.jsonl"
    reads = {".csv": "read_csv", ".tsv": "read_table", ".parquet": "read_parquet", ".json": "read_json"}
    if file.suffix.lower() not in reads:
        return []
    return [f"pandas.{reads[file.suffix.lower()]}({path!r}).to_json({lines!r}, orient='records', lines=True)"]


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
