"""Inputs with ids: what a model is called with, row by row, free of padding and of batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.errors import InputsError

Rows: TypeAlias = Tensor | tuple[Tensor, ...]
Block: TypeAlias = tuple[int, int] | Tensor


@dataclass(frozen=True)
class Batch:
    """Some inputs as one call of the model.

    Attributes:
        rows: (batch,) positions of these inputs among all inputs.
        fields: argument (position or keyword) -> (batch, ...) tensor, padded where the rows are ragged.
        mask: (batch, positions) bool, true at real tokens; None where the inputs are no tokens.
        extra: keyword -> tensor for what the padding needs: ``attention_mask``, ``decoder_attention_mask``, and
            ``position_ids`` where rows are padded at the left.
        columns: name -> (batch,) values that the model never sees; sites such as ``@S2`` look positions up here.
        ids: (batch,) ids of the inputs, for messages.
        full: whether it is known that no token is padding.
    """

    rows: npt.NDArray[np.int64]
    fields: Mapping[int | str, Tensor]
    mask: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    columns: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    ids: tuple[str, ...] = ()
    full: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def main(self) -> Tensor:
        """(batch, ...) the field that carries the input."""
        return next(iter(self.fields.values()))

    @property
    def decoded(self) -> Batch:
        """The batch with the mask of the tokens that logits stand at: the decoder's, where it is given its own."""
        tokens = self.fields.get("decoder_input_ids")
        if tokens is None:
            return self
        mask = self.fields.get("decoder_attention_mask", self.extra.get("decoder_attention_mask"))
        known = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask.bool()
        return replace(self, mask=known, full=False)

    @property
    def call(self) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Positional and keyword arguments of the model."""
        positions = sorted(key for key in self.fields if isinstance(key, int))
        named = {key: value for key, value in self.fields.items() if isinstance(key, str)}
        return tuple(self.fields[key] for key in positions), {**named, **self.extra}

    def with_main(self, values: Tensor) -> Batch:
        """The same batch with another main field of the same shape."""
        name = next(iter(self.fields))
        return replace(self, fields={**self.fields, name: values})

    def take(self, rows: npt.NDArray[np.int64]) -> Batch:
        """The inputs at some rows of this batch, in that order and as often as they are named."""
        index = torch.as_tensor(rows, device=self.main.device)
        return Batch(
            self.rows[rows],
            {name: value[index] for name, value in self.fields.items()},
            None if self.mask is None else self.mask[index],
            {name: value[index] for name, value in self.extra.items()},
            {name: value[rows] for name, value in self.columns.items()},
            tuple(self.ids[row] for row in rows) if self.ids else (),
            self.full,
        )


@dataclass(frozen=True, repr=False)
class Inputs:
    """Inputs of a model, each with a stable id.

    Attributes:
        ids: (n,) unique text; from the data where it has ids, otherwise a hash of the content.
        fields: argument of the model (position or keyword) -> (n, ...) tensor, or n ragged rows of tokens.
        columns: name -> (n,) values that the model never sees.
        blocks: named parts of the main field: ``(start, stop)`` on its last axis, or a bool mask of a row's shape.
    """

    ids: tuple[str, ...]
    fields: Mapping[int | str, Rows]
    columns: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    blocks: Mapping[str, Block] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.fields:
            raise InputsError("inputs without any field", needed="at least one tensor that the model is called with")
        for name, rows in self.fields.items():
            if len(rows) != len(self.ids):
                raise InputsError(f"field {name!r} has {len(rows)} rows for {len(self.ids)} ids")
        for name, values in self.columns.items():
            if len(values) != len(self.ids):
                raise InputsError(f"column {name!r} has {len(values)} rows for {len(self.ids)} inputs")
        if len(set(self.ids)) != len(self.ids):
            seen: set[str] = set()
            doubled = [key for key in self.ids if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
            raise InputsError(
                f"{len(doubled)} ids stand more than once: {', '.join(map(repr, doubled[:3]))}",
                needed="one id per input",
                tries=["drop the repeated rows", "leave ids out: content hashes are used"],
            )
        if self.tokens:
            empty = [self.ids[row] for row, tokens in enumerate(self.main) if tokens.numel() == 0]
            if empty:
                raise InputsError(
                    f"{len(empty)} of {len(self)} inputs have no tokens: {', '.join(map(repr, empty[:3]))}",
                    causes=["empty text and a tokenizer that adds no start token", "a mask of zeros only"],
                    tries=["drop the empty inputs"],
                )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        """How many, and of what, in a line."""
        fields = ", ".join(f"{name!r} {_form(rows)}" for name, rows in self.fields.items())
        named = {"columns": self.columns, "blocks": self.blocks}
        more = "".join(f"; {what} {', '.join(map(repr, known))}" for what, known in named.items() if known)
        return f"Inputs({len(self):,} inputs: {fields}{more})"

    def __getitem__(self, rows: Any) -> Inputs:
        """The inputs at some rows: an index, a slice, a list or an array of positions or of booleans."""
        index = np.ascontiguousarray(np.atleast_1d(np.arange(len(self))[rows]))
        picked = {
            name: values[torch.as_tensor(index)] if isinstance(values, Tensor) else tuple(values[i] for i in index)
            for name, values in self.fields.items()
        }
        columns = {name: values[index] for name, values in self.columns.items()}
        found = replace(self, ids=tuple(self.ids[i] for i in index), fields=picked, columns=columns)
        if "digests" in self.__dict__:
            found.__dict__["digests"] = tuple(self.digests[i] for i in index)
        return found

    def named(self, ids: Sequence[str]) -> Inputs:
        """The same inputs under other ids (n,)."""
        found = replace(self, ids=tuple(ids))
        if "digests" in self.__dict__:
            found.__dict__["digests"] = self.digests
        return found

    @property
    def main(self) -> Rows:
        """(n, ...) the field that carries the input (the first one); a list of rows where they differ in length."""
        return next(iter(self.fields.values()))

    @property
    def tokens(self) -> bool:
        """Whether the inputs are sequences of token ids."""
        return len(self) > 0 and not self.main[0].is_floating_point() and self.main[0].ndim == 1

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(n,) number of tokens, or the size of a row's last axis."""
        return np.array([row.shape[-1] if row.ndim else 1 for row in self.main], dtype=np.int64)

    @cached_property
    def ragged(self) -> bool:
        """Whether the rows differ in length."""
        return bool((self.lengths != self.lengths[:1]).any())

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """(n,) hash of each input's content: equal exactly where the model is called with the same values."""
        return tuple(_digest({name: rows[i] for name, rows in self.fields.items()}) for i in range(len(self)))

    def row(self, index: int) -> dict[str, Any]:
        """One input as people wrote it: its columns and its fields by name (a positional field as ``"input"``)."""
        fields = {"input" if isinstance(name, int) else name: rows[index] for name, rows in self.fields.items()}
        return {**fields, **{name: values[index] for name, values in self.columns.items()}}

    def block_mask(self, name: str) -> Tensor:
        """(...) bool mask of one row's shape: where a declared block lies."""
        block, shape = self.blocks[name], self.main[0].shape
        if isinstance(block, Tensor):
            return block.expand(shape)
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[..., block[0] : block[1]] = True
        return mask

    def batches(
        self,
        size: int,
        *,
        side: str = "left",
        accepts: Collection[str] = (),
        needs: Collection[str] = (),
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        fill: int = 0,
        by_length: bool = False,
        together: bool = True,
    ) -> Iterator[Batch]:
        """Batches of at most ``size`` inputs; every input is in exactly one.

        Args:
            size: inputs a batch, at most.
            side: ``left`` or ``right``, where shorter token sequences are padded.
            accepts: names of the model's arguments; without ``attention_mask`` only rows of equal length share a batch,
                so that padding can never reach the model unmasked. ``position_ids`` count the real tokens from zero,
                and are made only for rows padded at the left: elsewhere a model's own are right, and some families
                count from another number.
            needs: those of them that have no default: ``position_ids`` are then made for every batch.
            device: where the tensors go.
            dtype: what floating-point fields are cast to.
            fill: token id at padded positions.
            by_length: whether rows of like length share a batch, the shortest first, so that little is padded; inputs
                that are one batch anyway stay in order.
            together: whether rows of differing length may share a batch.
        """
        alone = self.tokens and not (together and "attention_mask" in accepts)
        for rows in self._groups(size, alone, by_length and self.tokens and len(self) > size):
            yield self._batch(rows, side, accepts, needs, device, dtype, fill)

    def _groups(self, size: int, alone: bool, by_length: bool) -> Iterator[npt.NDArray[np.int64]]:
        order = np.argsort(self.lengths, kind="stable") if by_length else np.arange(len(self))
        for length in np.unique(self.lengths) if alone else [None]:
            rows = order if length is None else order[self.lengths[order] == length]
            for start in range(0, len(rows), size):
                yield rows[start : start + size]

    def _batch(
        self,
        rows: npt.NDArray[np.int64],
        side: str,
        accepts: Collection[str],
        needs: Collection[str],
        device: torch.device | None,
        dtype: torch.dtype | None,
        fill: int,
    ) -> Batch:
        def move(value: Tensor) -> Tensor:
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        fields, index = {}, torch.as_tensor(rows)
        for name, values in self.fields.items():
            if isinstance(values, Tensor):
                fields[name] = move(values[index])
            else:
                # A decoder is causal: what is padded behind its tokens does not reach them.
                where = "right" if str(name).startswith("decoder_") else side
                fields[name] = move(_pad([values[i] for i in rows], where, 0 if fields else fill))
        columns = {name: values[rows] for name, values in self.columns.items()}
        ids = tuple(self.ids[row] for row in rows)
        if not self.tokens:
            return Batch(rows, fields, columns=columns, ids=ids)
        lengths = self.lengths[rows][:, None]
        longest = int(lengths.max())
        place = np.arange(longest)
        real = place >= longest - lengths if side == "left" else place < lengths
        extra = {"attention_mask": torch.from_numpy(real.astype(np.int64))}
        full = bool(real.all())
        if "position_ids" in needs or (side == "left" and not full):
            extra["position_ids"] = torch.from_numpy((real.astype(np.int64).cumsum(-1) - 1).clip(min=0))
        extra |= self._decoder_mask(rows, accepts)
        kept = {name: move(value) for name, value in extra.items() if name in accepts and name not in fields}
        return Batch(rows, fields, move(torch.from_numpy(real)), kept, columns, ids, full)

    def _decoder_mask(self, rows: npt.NDArray[np.int64], accepts: Collection[str]) -> dict[str, Tensor]:
        """The mask of decoder tokens of differing lengths, which says where the last of them is."""
        tokens = self.fields.get("decoder_input_ids", ())
        if "decoder_attention_mask" in self.fields or isinstance(tokens, Tensor) or not len(tokens):
            return {}
        if "decoder_attention_mask" not in accepts:
            raise InputsError(
                "decoder_input_ids of differing lengths, and a model that takes no decoder_attention_mask",
                tries=["decoder_input_ids of one length", "a model whose forward takes decoder_attention_mask"],
            )
        return {"decoder_attention_mask": _pad([torch.ones(len(tokens[i])).long() for i in rows], "right")}

    @classmethod
    def of(
        cls,
        data: Any,
        *,
        tokenizer: Callable[..., Any] | None = None,
        accepts: Collection[str] = (),
        blocks: Mapping[str, Block] | None = None,
        ids: Sequence[object] | None = None,
        columns: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Inputs:
        """Inputs from whatever people have.

        Args:
            data: a tensor or array (n, ...); a dict of them; a list of strings (needs ``tokenizer``); a list of dicts;
                a Hugging Face ``Dataset``; a ``DataLoader``; or Inputs.
            tokenizer: turns a list of strings into ``{"input_ids": [[...], ...]}``.
            accepts: names of the model's arguments, in their order: fields are kept in it, whichever order a dict has,
                so that the first one carries the input (``input_ids`` or ``inputs_embeds`` where there are any). A
                dict's other keys become columns.
            blocks: named parts of the main field, see the class.
            ids: (n,) one id per input, unique. A column ``id`` in the data serves as well.
            columns: further values, one per input, that the model never sees.
            dtype: in which the model computes. Double precision is kept for a model in ``torch.float64`` alone: to all
                others inputs that differ less than single precision shows are the same.

        Raises:
            InputsError: on empty data, ragged data that is no text, doubled ids, complex numbers, or a kind that is
                none of these.
        """
        from causalmad.reading import read

        single = isinstance(data, Tensor) and data.is_floating_point()
        if (single or (isinstance(data, np.ndarray) and data.dtype.kind == "f")) and data.ndim == 1:
            raise InputsError(
                f"data of shape ({len(data)},)",
                needed="one row per input",
                causes=["a single input without its batch axis"],
                tries=[
                    "x[None] for one input",
                    "inputs[17:18] in place of inputs[17]",
                    "x[:, None] for single numbers",
                ],
            )
        return read(data, tokenizer, accepts, blocks, ids, columns, dtype)


def _form(rows: Rows) -> str:
    """Type and shape of a field's rows, for people: sequences of differing length have none in common."""
    kind = str(rows[0].dtype).removeprefix("torch.") if len(rows) else "nothing"
    if isinstance(rows, Tensor) or not len(rows):
        return f"{kind} {tuple(rows.shape[1:])}" if isinstance(rows, Tensor) else kind
    lengths = [len(row) for row in rows]
    low, high = min(lengths), max(lengths)
    return f"{kind} ({low})" if low == high else f"{kind} ({low} to {high})"


def content_ids(fields: Mapping[int | str, Rows], count: int) -> tuple[str, ...]:
    """(n,) ids from the content; repeats of the same content get a running number."""
    seen: dict[str, int] = {}
    ids = []
    for row in range(count):
        key = _digest({name: rows[row] for name, rows in fields.items()})[:12]
        seen[key] = seen.get(key, 0) + 1
        ids.append(key if seen[key] == 1 else f"{key}.{seen[key]}")
    return tuple(ids)


def _digest(row: Mapping[int | str, Tensor]) -> str:
    """Hash of what the model is called with, however it was passed: by name or position, in whichever precision."""
    digest = hashlib.blake2b(digest_size=16)
    for number, (name, value) in enumerate(row.items()):
        value = _plain(value.detach().cpu()).contiguous()
        digest.update(f"{name if number else 'main'}:{value.dtype}:{tuple(value.shape)}:".encode())
        digest.update(value.numpy().data)
    return digest.hexdigest()


def _plain(value: Tensor) -> Tensor:
    """Integers as int64, floats as float32, and as float64 only where that is another number."""
    if not value.is_floating_point():
        return value.to(torch.int64)
    single = value.float()
    if value.dtype == torch.float64 and not bool(((single.double() == value) | value.isnan()).all()):
        return value
    return single


def _pad(rows: Sequence[Tensor], side: str, fill: int = 0) -> Tensor:
    """(batch, longest) rows of equal or differing length as one tensor."""
    longest = max(row.shape[0] for row in rows)
    if len({(row.shape, row.dtype) for row in rows}) == 1:
        return torch.stack(list(rows))
    out = torch.full((len(rows), longest), fill, dtype=rows[0].dtype)
    for place, row in zip(out, rows, strict=True):
        start = longest - row.shape[0] if side == "left" else 0
        place[start : start + row.shape[0]] = row
    return out
