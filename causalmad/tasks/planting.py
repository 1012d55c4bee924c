"""Interchange interventions during training: how a variable is planted at a place of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Exchange:
    """Rows of a batch that take their values at a place from other rows of the same batch.

    Attributes:
        path: of the module.
        side: whether what goes into it or what comes out of it is exchanged.
        source: (rows,) from which row each takes its values.
        mask: (rows, features) which of them.
        position: (rows,) position in every row, for values of sequences; None for others.
    """

    path: str
    side: Literal["input", "output"]
    source: Tensor
    mask: Tensor
    position: Tensor | None = None

    def __call__(self, value: Tensor) -> Tensor:
        """The values after the exchange; gradients flow into bases and sources."""
        if self.position is None:
            return torch.where(self.mask, value[self.source], value)
        rows = torch.arange(len(value))
        there = value[self.source, self.position[self.source]]
        new = torch.where(self.mask, there, value[rows, self.position])
        return value.index_put((rows, self.position), new)


@contextmanager
def exchanging(model: nn.Module, exchanges: Sequence[Exchange]) -> Iterator[None]:
    """While this is open, each run of the model makes the exchanges.

    Sources are rows without an exchange further up; otherwise they would not hold their own values.

    References:
        Geiger et al. 2022, "Inducing causal structure for interpretable neural networks", arXiv 2112.00826 (the
        interchange-intervention training loss); Gupta et al. 2024, "InterpBench", arXiv 2407.14494 (strictness).
    """
    handles = []
    try:
        for exchange in exchanges:
            module = model.get_submodule(exchange.path)
            if exchange.side == "input":
                handles.append(module.register_forward_pre_hook(_before(exchange)))
            else:
                handles.append(module.register_forward_hook(_after(exchange)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def kept(*modules: nn.Module, side: Literal["input", "output"] = "output") -> Iterator[list[Tensor]]:
    """A list that holds what comes out of each module (or goes into it) in turn, once the model has run."""
    values: list[Tensor] = []

    def keep(value: Any) -> None:
        values.append(value if isinstance(value, Tensor) else value[0])

    if side == "input":
        handles = [module.register_forward_pre_hook(lambda _, given: keep(given)) for module in modules]
    else:
        handles = [module.register_forward_hook(lambda _, given, out: keep(out)) for module in modules]
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()


def _before(exchange: Exchange) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda module, given: (exchange(given[0]), *given[1:])


def _after(exchange: Exchange) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def hook(module: nn.Module, given: tuple[Any, ...], out: Any) -> Any:
        return exchange(out) if isinstance(out, Tensor) else (exchange(out[0]), *out[1:])

    return hook


def head_mask(chosen: Tensor, size: int) -> Tensor:
    """(rows, heads * size) features of the chosen (rows, heads)."""
    return chosen.repeat_interleave(size, dim=1)
