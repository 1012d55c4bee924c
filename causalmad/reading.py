"""Reading what people have into :class:`~causalmad.inputs.Inputs`: tensors, texts, dicts, data sets, loaders."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causalmad.errors import InputsError
from causalmad.inputs import Block, Inputs, Rows, content_ids

_TEXT_KEYS = ("text", "prompt", "input", "sentence")
_SHUFFLED = (
    torch.utils.data.RandomSampler,
    torch.utils.data.SubsetRandomSampler,
    torch.utils.data.WeightedRandomSampler,
)
_MAIN = ("input_ids", "inputs_embeds")
_NEVER_FIELDS = ("labels", "label", "id")  # `labels` is an argument of many models, but it asks for a loss


def read(
    data: Any,
    tokenizer: Callable[..., Any] | None,
    accepts: Collection[str],
    blocks: Mapping[str, Block] | None,
    ids: Sequence[object] | None,
    columns: Mapping[str, Any] | None,
    dtype: torch.dtype = torch.float32,
) -> Inputs:
    """Inputs from ``data``; see :meth:`causalmad.inputs.Inputs.of` for the kinds and the errors."""
    if isinstance(data, Inputs):
        return _again(data, blocks, ids, columns)
    table = _table(data)
    _require_one_length(table)
    fields, found = _split(table, tokenizer, accepts, dtype)
    count = len(next(iter(fields.values())))
    if count == 0:
        raise InputsError("no inputs at all: the data has 0 rows", needed="at least one input")
    found.update({name: _column(values) for name, values in (columns or {}).items()})
    given = ids if ids is not None else found.pop("id", None)
    names = content_ids(fields, count) if given is None else tuple(str(key) for key in given)
    return Inputs(names, fields, found, _blocks(blocks, fields))


def _require_one_length(table: Mapping[int | str, Any]) -> None:
    counts = {
        str(name): len(values)
        for name, values in table.items()
        if hasattr(values, "__len__") and getattr(values, "ndim", True)
    }
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise InputsError(
            f"fields of different numbers of rows: {told}", needed="one row of every field for each input"
        )


def _again(
    inputs: Inputs,
    blocks: Mapping[str, Block] | None,
    ids: Sequence[object] | None,
    columns: Mapping[str, Any] | None,
) -> Inputs:
    """The same inputs, with what is newly said about them."""
    return replace(
        inputs,
        ids=inputs.ids if ids is None else tuple(str(key) for key in ids),
        columns={**inputs.columns, **{name: _column(values) for name, values in (columns or {}).items()}},
        blocks=inputs.blocks if blocks is None else _blocks(blocks, inputs.fields),
    )


def _blocks(blocks: Mapping[str, Block] | None, fields: Mapping[int | str, Rows]) -> dict[str, Block]:
    main = next(iter(fields.values()))
    for name, block in (blocks or {}).items():
        if isinstance(block, Tensor):
            shape = main[0].shape
            if block.dtype != torch.bool or block.shape != shape[len(shape) - block.ndim :]:
                raise InputsError(
                    f"block {name!r} is a {block.dtype} tensor of shape {tuple(block.shape)}",
                    needed=f"bool, of a row's shape {tuple(shape)}",
                )
            continue
        width = min(row.shape[-1] if row.ndim else 0 for row in main)
        if not 0 <= block[0] < block[1] <= width:
            raise InputsError(f"block {name!r} = {tuple(block)} lies outside the last axis of size {width}")
    return dict(blocks or {})


def _table(data: Any) -> dict[int | str, Any]:
    """The data as argument or column name -> values, one per input."""
    if isinstance(data, np.ndarray) and data.dtype.kind in "USO":
        return _table(data.tolist())
    if isinstance(data, (Tensor, np.ndarray)):
        return {0: data}
    if isinstance(data, Mapping):
        return dict(data)
    if isinstance(data, torch.utils.data.DataLoader):
        if isinstance(data.sampler, _SHUFFLED):
            raise InputsError(
                "a DataLoader that shuffles: scores would come in an order that nothing tells",
                tries=["DataLoader(loader.dataset, batch_size=loader.batch_size)"],
            )
        with torch.random.fork_rng():  # a loader draws a seed from the global generator for every pass
            return _stack([_table(_unlabelled(batch)) for batch in data])
    if hasattr(data, "column_names") and hasattr(data, "features"):  # a Hugging Face Dataset
        if not hasattr(data, "__len__"):  # a stream, which need not know its columns
            return _rows(list(data))
        whole = data[:]  # a transform makes other columns than those that are stored
        table = whole if isinstance(whole, Mapping) else data.with_format(None)[:]
        return {name: list(values) for name, values in table.items()}
    if isinstance(data, (str, bytes)):
        raise InputsError("a single text was passed", needed="a list of texts", tries=["[text]"])
    if isinstance(data, Sequence):
        return _rows(list(data))
    raise InputsError(
        f"data of type {type(data).__name__}",
        needed="a tensor, a dict of tensors, a list of texts or of dicts, a Dataset, a DataLoader, or Inputs",
        tries=_tries(data),
    )


def _tries(data: Any) -> list[str]:
    """What makes data of another kind into one that is read."""
    if isinstance(data, torch.utils.data.Dataset):
        return ["DataLoader(data, batch_size=64)"]
    if hasattr(data, "to_dict") and hasattr(data, "iloc"):  # pandas
        return (
            ["frame.to_numpy(dtype='float32')", 'frame.to_dict("list")']
            if hasattr(data, "columns")
            else ["series.tolist()"]
        )
    return ["list(data)"] if hasattr(data, "__iter__") else []


def _unlabelled(batch: Any) -> Any:
    """A loader's ``(x, y)`` as a table in which y is a column."""
    if isinstance(batch, (tuple, list)) and batch and all(isinstance(part, Tensor) for part in batch):
        names = ["label", *(f"column {i}" for i in range(2, len(batch)))]
        return {0: batch[0], **dict(zip(names, batch[1:], strict=True))}
    return batch


def _stack(tables: list[dict[int | str, Any]]) -> dict[int | str, Any]:
    if not tables:
        raise InputsError("no inputs at all: the loader is empty", needed="at least one input")
    return {name: [row for table in tables for row in table[name]] for name in tables[0]}


def _rows(rows: list[Any]) -> dict[int | str, Any]:
    if not rows:
        raise InputsError("no inputs at all: an empty list", needed="at least one input")
    if all(isinstance(row, str) for row in rows):
        return {"text": rows}
    if all(isinstance(row, Mapping) for row in rows):
        names = dict.fromkeys(name for row in rows for name in row)
        for name in names:
            missing = [i for i, row in enumerate(rows) if name not in row]
            if missing and name != "id":
                raise InputsError(f"{len(missing)} of {len(rows)} rows have no {name!r}, the first is row {missing[0]}")
        return {name: [row.get(name, i) for i, row in enumerate(rows)] for name in names}
    if all(isinstance(row, (Tensor, np.ndarray)) for row in rows):
        return {0: rows}
    kinds = sorted({type(row).__name__ for row in rows})
    raise InputsError(
        f"a list of {', '.join(kinds)}",
        needed="texts, dicts or tensors, all of one kind",
        tries=["torch.tensor(data)"] if set(kinds) <= {"list", "tuple", "int", "float"} else [],
    )


def _split(
    table: dict[int | str, Any],
    tokenizer: Callable[..., Any] | None,
    accepts: Collection[str],
    dtype: torch.dtype,
) -> tuple[dict[int | str, Rows], dict[str, Any]]:
    """What the model is called with, and what it never sees."""
    fields: dict[int | str, Rows] = {}
    columns: dict[str, Any] = {}
    table = dict(table)
    sequences = "input_ids" in table or 0 in table or not any(name in accepts for name in table)
    # Both are made anew for every batch from the tokens themselves; with embeddings they are inputs like any other.
    mask = table.pop("attention_mask", None) if sequences else None
    if sequences:
        table.pop("position_ids", None)
    for name, values in table.items():
        if isinstance(name, int) or name == "input_ids" or (name in accepts and name not in _NEVER_FIELDS):
            fields[name] = _field(values, name, dtype)
        else:
            columns[str(name)] = _column(values)
    if not sequences and _masks_tokens(fields, accepts):
        mask = fields.pop("attention_mask")
    if not fields:
        key = _text_key(columns)
        if key is None:
            raise InputsError(
                f"none of the fields {sorted(columns)} is an argument of the model",
                needed=f"one of {sorted(accepts)[:8]}, or a text field such as 'text'",
            )
        if tokenizer is None:
            raise InputsError(
                f"the inputs are texts ({key!r}) and the model came without a tokenizer",
                tries=["open_model(model, tokenizer=tokenizer)", "pass token ids: [{'input_ids': [...]}, ...]"],
            )
        encoded = _encoded(tokenizer, [str(text) for text in columns[key]])
        fields["input_ids"] = _field(encoded["input_ids"], "input_ids")
        types = encoded.get("token_type_ids") if hasattr(encoded, "get") and "token_type_ids" in accepts else None
        # Nothing but zeros is what a model takes for granted.
        if types is not None and any(bool(torch.as_tensor(row).any()) for row in types):
            fields["token_type_ids"] = _field(types, "token_type_ids")
        mask = encoded.get("attention_mask") if hasattr(encoded, "get") else None
    if mask is not None:
        fields = _unpadded(fields, mask)
    elif "input_ids" in table:
        _require_no_padding(fields["input_ids"], tokenizer)
    return {name: fields[name] for name in _ordered(fields, accepts)}, columns


def _masks_tokens(fields: Mapping[int | str, Rows], accepts: Collection[str]) -> bool:
    """Whether there is an attention mask, and it says which of the main field's tokens are real."""
    main = fields[_ordered(fields, accepts)[0]] if fields else ()
    pairs = list(zip(main, fields.get("attention_mask", ())))
    integers = all(row.ndim == 1 and not row.is_floating_point() for row, _ in pairs)
    return len(fields) > 1 and bool(pairs) and integers and all(row.shape == keep.shape for row, keep in pairs)


def _ordered(names: Iterable[int | str], accepts: Collection[str]) -> list[int | str]:
    """Fields in the order of the model's arguments, whatever order they were passed in; the one with the input first.

    A set of arguments has no order, and leaves the names in theirs.
    """
    known = {name: place for place, name in enumerate(accepts)} if isinstance(accepts, Sequence) else {}

    def key(name: int | str) -> tuple[bool, bool, bool, int]:
        if isinstance(name, int):
            return True, False, False, name
        beside = name.endswith("mask") or name in ("position_ids", "token_type_ids")
        return name not in _MAIN, True, beside, known.get(name, 0)

    return sorted(names, key=key)


def _text_key(columns: Mapping[str, Any]) -> str | None:
    """The column that holds the texts; None where there is none.

    Raises:
        InputsError: when several may be meant.
    """
    texts = [name for name, values in columns.items() if len(values) and isinstance(values[0], str)]
    known = [name for name in _TEXT_KEYS if name in texts]
    if not known and len(texts) > 1:
        raise InputsError(
            f"the text may be any of the fields {', '.join(map(repr, texts))}",
            needed=f"one text field, or one that is called {', '.join(map(repr, _TEXT_KEYS))}",
            tries=[f"call {texts[0]!r} 'text'"],
        )
    return next(iter((*known, *texts)), None)


def _require_no_padding(tokens: Any, tokenizer: Any) -> None:
    """Token rows without an attention mask that begin or end with padding would have it counted as tokens."""
    fill = getattr(tokenizer, "pad_token_id", None)
    if not isinstance(fill, int) or fill == getattr(tokenizer, "eos_token_id", None):
        return
    padded = [row for row, ids in enumerate(tokens) if len(ids) > 1 and fill in (int(ids[0]), int(ids[-1]))]
    if padded:
        raise InputsError(
            f"{len(padded)} of {len(tokens)} rows of input_ids begin or end with the tokenizer's padding, {fill}, and "
            f"there is no attention_mask; the first is row {padded[0]}",
            needed="real tokens alone, or a mask of them",
            tries=["the tokenizer's whole output, attention_mask with it", "an attention_mask of ones, where they are"],
        )


def _encoded(tokenizer: Callable[..., Any], texts: list[str]) -> Any:
    """What the tokenizer makes of texts.

    Raises:
        InputsError: when it raises, with the first text that it may have stumbled on.
    """
    try:
        return tokenizer(texts)
    except Exception as error:
        half = (row for row, text in enumerate(texts) if any("\ud800" <= letter <= "\udfff" for letter in text))
        row = next(half, None)
        found = (
            "" if row is None else f"; row {row} holds half of a surrogate pair, which is no text: {texts[row]!r:.80}"
        )
        raise InputsError(
            f"the tokenizer raised {type(error).__name__}: {error}{found}",
            needed="texts",
            tries=["text.encode('utf-8', 'replace').decode()"] if found else [],
        ) from error


def _unpadded(fields: dict[int | str, Rows], mask: Any) -> dict[int | str, Rows]:
    """The fields without the tokens that an attention mask leaves out."""
    masks = [torch.as_tensor(row, dtype=torch.bool) for row in mask]
    for row, keep in enumerate(masks):
        real = keep.nonzero().flatten()
        if len(real) and int(real[-1] - real[0]) + 1 != len(real):
            raise InputsError(
                f"the attention mask of row {row} has holes",
                needed="real tokens in one piece, with padding around them",
            )
    out = {}
    for name, rows in fields.items():
        if len(rows) != len(masks):
            raise InputsError(f"field {name!r} has {len(rows)} rows for an attention mask of {len(masks)}")
        fits = all(row.shape == keep.shape for row, keep in zip(rows, masks))
        out[name] = _field([row[keep] for row, keep in zip(rows, masks)], name, torch.float64) if fits else rows
    return out


def _field(values: Any, name: int | str, dtype: torch.dtype = torch.float32) -> Rows:
    try:
        if isinstance(values, (Tensor, np.ndarray)):
            whole = _single(values, name, dtype)
            if whole.ndim == 0:
                raise InputsError(f"field {name!r} is a single number", needed="one row per input")
            return whole
        rows = [_single(row, name, dtype) for row in values]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputsError(f"field {name!r} cannot be made into tensors: {error}") from error
    if name == "input_ids" or any(row.ndim == 1 and not row.is_floating_point() for row in rows):
        rows = [row.long() if row.shape == (0,) else row for row in rows]  # an empty list says nothing of its type
    if len({row.shape for row in rows}) <= 1:
        return torch.stack(rows) if rows else torch.zeros(0, 1)
    if all(row.ndim == 1 and not row.is_floating_point() for row in rows):
        return tuple(rows)
    shapes = sorted({tuple(row.shape) for row in rows})[:3]
    raise InputsError(
        f"field {name!r} has rows of different shapes: {shapes}",
        needed="one shape, or sequences of token ids, which alone may differ in length",
    )


def _single(value: Any, name: int | str, dtype: torch.dtype) -> Tensor:
    """A tensor on the CPU, without a graph; floats no wider than ``dtype`` (numpy's are float64, most models' are not).

    Raises:
        InputsError: on complex numbers.
    """
    found = torch.as_tensor(value).detach().cpu()
    if found.is_complex():
        raise InputsError(
            f"field {name!r} holds complex numbers",
            needed="real ones: a gradient, a distance and an order are not defined otherwise",
            tries=["torch.view_as_real(x), and a model that begins with torch.view_as_complex"],
        )
    if found.is_floating_point() and dtype == torch.float64 and not isinstance(value, (Tensor, np.ndarray)):
        return torch.as_tensor(value, dtype=dtype)  # Python's own numbers are that wide
    if found.dtype == torch.float64 and dtype != torch.float64:
        return found.float()
    return found.long() if found.dtype == torch.int32 else found


def _column(values: Any) -> Any:
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    array = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        array[i] = value.item() if isinstance(value, (Tensor, np.generic)) and np.ndim(value) == 0 else value
    kinds = {type(value) for value in array}
    return np.array(list(array)) if kinds and kinds <= {int, float, bool} else array
