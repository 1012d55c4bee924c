"""Targets: scalar read-outs of an output, frozen at the clean run, so that no label is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from causalmad.errors import CausalmadError, ModelError

Readout: TypeAlias = Callable[[Tensor], Tensor]


class Target(Protocol):
    """A scalar of an output: ``bind`` the clean logits (batch, classes), then read (batch, classes) -> (batch,)."""

    def bind(self, clean: Tensor) -> Readout:
        """A read-out that stays the same question whatever an intervention does to the logits.

        Args:
            clean: (batch, classes) logits of the run without one.
        """
        ...


@dataclass(frozen=True)
class TopMargin:
    """The model's own top logit minus the logsumexp of the others, in nats; the class is that of the clean run.

    It needs no label, and unlike a probability it does not saturate.
    """

    def bind(self, clean: Tensor) -> Readout:
        """Freeze the class at the clean argmax."""
        top = clean.detach().argmax(-1)
        return lambda logits: margin(logits, top)


@dataclass(frozen=True)
class LogitDifference:
    """The logit of class ``a`` minus that of class ``b``."""

    a: int
    b: int

    def bind(self, clean: Tensor) -> Readout:
        """The clean run plays no part."""
        _require_class(clean, self.a, self.b)
        return lambda logits: logits[:, self.a] - logits[:, self.b]


@dataclass(frozen=True)
class ClassLogit:
    """The logit of one class.

    Args:
        index: the class, or token of the vocabulary.
    """

    index: int

    def bind(self, clean: Tensor) -> Readout:
        """The clean run plays no part."""
        _require_class(clean, self.index)
        return lambda logits: logits[:, self.index]


@dataclass(frozen=True)
class Divergence:
    """Kullback-Leibler divergence from the clean output to the output, in nats (zero, with zero slope, when clean)."""

    def bind(self, clean: Tensor) -> Readout:
        """Freeze the clean distribution."""
        reference = log_softmax(clean.detach(), -1)
        return lambda logits: divergence(reference, log_softmax(logits, -1))


@dataclass(frozen=True)
class _Bound:
    readout: Readout

    def bind(self, clean: Tensor) -> Readout:
        return self.readout


def bound(target: Target, clean: Tensor) -> Target:
    """A target that asks what ``target`` asks of the ``clean`` (batch, classes) logits, whatever comes after."""
    return _Bound(target.bind(clean))


@dataclass(frozen=True)
class _Custom:
    function: Readout

    def bind(self, clean: Tensor) -> Readout:
        def read(logits: Tensor) -> Tensor:
            try:
                value = self.function(logits)
            except CausalmadError:
                raise
            except Exception as error:
                name = getattr(self.function, "__qualname__", type(self.function).__name__)
                raise ModelError(
                    f"the target {name} raised {type(error).__name__} on logits {tuple(logits.shape)}: {error}",
                    needed="a function of the logits (batch, classes) -> (batch,)",
                    causes=["a class that the model does not have", "one row taken for all"],
                    tries=["TopMargin()", "ClassLogit(0)"],
                ) from error
            if not isinstance(value, Tensor) or value.shape != logits.shape[:1]:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ModelError(f"the target gave {shape}", needed=f"one number per input, shape {(len(logits),)}")
            return value

        return read


def as_target(target: Target | Readout) -> Target:
    """A target from a target or from any function of logits (batch, classes) -> (batch,).

    Raises:
        ModelError: when it is neither.
    """
    if isinstance(target, type):
        raise ModelError(f"{target.__name__} is a class, not a target", tries=[f"{target.__name__}(...)"])
    if hasattr(target, "bind"):
        return target
    if callable(target):
        return _Custom(target)
    raise ModelError(f"{target!r} is no target", needed="a part of causalmad.targets, or a function of the logits")


def margin(logits: Tensor, top: Tensor) -> Tensor:
    """(batch,) logit of class ``top`` minus logsumexp of the others, in nats.

    Args:
        logits: (batch, classes).
        top: (batch,) classes.
    """
    chosen = logits.gather(-1, top[:, None]).squeeze(-1)
    others = logits.scatter(-1, top[:, None], float("-inf"))
    return chosen - others.logsumexp(-1)


def require_alike(logits: Tensor, clean: Tensor) -> None:
    """Two runs of a model on the same inputs gave logits of the same shape.

    Args:
        logits: (batch, classes) of the one.
        clean: (batch, classes) of the other.

    Raises:
        ModelError: where the shapes differ.
    """
    if logits.shape != clean.shape:
        raise ModelError(
            f"the model returned logits {tuple(logits.shape)} in one run and {tuple(clean.shape)} in another",
            needed="the same number of classes for every input",
        )


def divergence(clean: Tensor, patched: Tensor) -> Tensor:
    """(batch,) KL(clean || patched) of two arrays of log-probabilities (batch, classes), in nats, never below zero.

    Raises:
        ModelError: where their shapes differ.
    """
    require_alike(patched, clean)
    return (clean.exp() * (clean - patched)).sum(-1).clamp(min=0)


def _require_class(logits: Tensor, *wanted: int) -> None:
    missing = [index for index in wanted if not -logits.shape[-1] <= index < logits.shape[-1]]
    if missing:
        raise ModelError(f"no class {missing[0]}: the model has {logits.shape[-1]}", tries=["TopMargin()"])


def two_logits(logits: Tensor) -> Tensor:
    """``logits`` (batch, 1) as two classes (batch, 2), so that a margin exists; those of more classes as they are."""
    return torch.cat([torch.zeros_like(logits), logits], -1) if logits.shape[-1] == 1 else logits
