"""Tokens as people read them, each text kept once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from causalmad.inputs import Inputs

_MOST = 500_000  # tokens in a report: more would make a file that nobody can open
_LEAST = 32  # tokens of an input that are kept, however many inputs there are


@dataclass(frozen=True)
class Tokens:
    """The tokens of all inputs.

    Attributes:
        vocabulary: texts of the tokens that occur.
        rows: (n,) positions in the vocabulary; of long inputs the last tokens only.
        cut: (n,) how many tokens at the start were left out.
        blocks: declared part of the input -> its first token, and the one after its last.
    """

    vocabulary: tuple[str, ...] = ()
    rows: tuple[tuple[int, ...], ...] = ()
    cut: tuple[int, ...] = ()
    blocks: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: Inputs | None, tokenizer: Any = None) -> Tokens:
        """The tokens of some inputs, none where they are no tokens.

        Args:
            inputs: whose tokens.
            tokenizer: has ``decode``, which turns a list of ids into text; without it ids are shown as numbers.
        """
        if inputs is None or not inputs.tokens:
            return cls()
        most = max(_LEAST, _MOST // len(inputs))
        ids = [np.asarray(row[-most:], dtype=np.int64) for row in inputs.main]
        known, flat = np.unique(np.concatenate(ids), return_inverse=True)
        ends = np.cumsum([len(row) for row in ids])[:-1]
        spans = {name: span for name, span in inputs.blocks.items() if not isinstance(span, Tensor)}
        return cls(
            tuple(_text(int(token), tokenizer) for token in known),
            tuple(tuple(row.tolist()) for row in np.split(flat, ends)),
            tuple(max(int(length) - most, 0) for length in inputs.lengths),
            spans,
        )


def _text(token: int, tokenizer: Any) -> str:
    decode = getattr(tokenizer, "decode", None)
    return str(token) if decode is None else str(decode([token]))
