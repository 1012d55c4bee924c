"""Logits, from whatever a model returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from causalmad.errors import ModelError
from causalmad.inputs import Batch
from causalmad.sites import position_index
from causalmad.targets import two_logits


def read_logits(result: Any, batch: Batch, position: int | str, columns: Tensor | None = None) -> Tensor:
    """(batch, classes) from whatever a model returns: a tensor, a tuple, or an output with ``logits``.

    A single logit per input counts as two classes, ``[0, logit]``.

    Args:
        result: what the model returned.
        batch: what it was called with.
        position: token whose logits are read.
        columns: columns of the padded rows that the model was asked for, ascending; None for all.

    Raises:
        ModelError: when there is no such tensor, or a sequence of logits and no tokens to say where to read.
    """
    logits = result
    if not isinstance(result, Tensor):
        logits = getattr(result, "logits", None)
        if logits is None and isinstance(result, (tuple, list)):
            logits = next((part for part in result if isinstance(part, Tensor)), None)
        if logits is None and isinstance(result, Mapping):
            logits = result.get("logits")
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"the model returned {type(result).__name__} without logits",
            needed="a tensor (batch, classes), a tuple that starts with one, or an output with .logits",
            causes=["a model without a head, such as GPT2Model in place of GPT2LMHeadModel"],
        )
    if logits.shape[:1] != (len(batch),):
        rows = f"{logits.shape[0]} rows" if logits.ndim else "a single number"
        raise ModelError(f"the model returned {rows} for {len(batch)} inputs", needed="one row each")
    if logits.ndim == 1:
        logits = logits[:, None]
    if logits.ndim == 3 and batch.mask is not None:
        logits = _at(logits, batch.decoded, position, columns)
    if logits.ndim != 2:
        raise ModelError(
            f"the model returned logits of shape {tuple(logits.shape)}",
            needed="(batch, classes), or (batch, positions, classes) for token inputs",
            tries=["wrap the model in a module that picks the logits to watch"],
        )
    wide = logits.detach() if logits.dtype == torch.float64 else logits.detach().float()
    if not bool(wide.sum().isfinite()):  # a single one makes the sum so; the sum may overflow on its own
        _require_finite(wide, batch)
    return two_logits(logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits)


def _require_finite(logits: Tensor, batch: Batch) -> None:
    bad = (~torch.isfinite(logits).all(-1)).nonzero().flatten().tolist()
    if bad:
        raise ModelError(
            f"the model returned NaN or infinite logits for {len(bad)} of the {len(batch)} inputs of a batch, the "
            f"first for {f'input {batch.ids[bad[0]]!r}' if batch.ids else f'row {int(batch.rows[bad[0]])}'}",
            causes=["overflow in half precision", "NaN in the inputs or in the weights"],
            tries=["model.float()", "torch.autograd.set_detect_anomaly(True) to find the module"],
        )


def _at(logits: Tensor, batch: Batch, position: int | str, columns: Tensor | None) -> Tensor:
    """(batch, classes) of (batch, positions, classes) logits at a token; only where it is known which that is."""
    count, width = logits.shape[1], 0 if batch.mask is None else batch.mask.shape[1]
    if count == 1:
        return logits[:, 0]
    picked = columns is not None and count == len(columns)
    if not picked and count != width:
        raise ModelError(
            f"the model returned logits of shape {tuple(logits.shape)} for inputs of {width} tokens",
            needed="(batch, classes), or logits at every token",
            causes=[
                "a prefix or a soft prompt, which stands before the tokens",
                "several answers to an input, each with logits of its own",
            ],
            tries=["wrap the model in a module that picks the logits to watch"],
        )
    at = position_index(position, batch)
    if columns is not None and picked:
        at = torch.searchsorted(columns.to(at.device), at)
    return logits[torch.arange(len(logits), device=logits.device), at]
