"""Functional coupling: whether trusted inputs depend on the same parameters as an input does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.signatures.base import Column, Signatures, State, require_inputs, signatures
from causalmad.signatures.kept import distinct, others
from causalmad.signatures.table import table

Floats = npt.NDArray[np.float64]

_NAMES = ("top mean", "largest", "bottom mean", "smallest", "mean", "same answer", "log size")


@dataclass(frozen=True)
class FunctionalCoupling:
    """Correlation of an input's loss with those of trusted inputs while noise is added to the parameters.

    Inputs that are processed by the same mechanism lose and gain together when the parameters are disturbed; an input
    that uses another mechanism is coupled to few trusted inputs or none. Nothing is differentiated, and no activation
    is looked at.

    Args:
        draws: how many disturbed models; each costs a forward pass over all inputs.
        noise: standard deviation of the Gaussian noise on every floating-point parameter, as a share of the standard
            deviation of the entries of its tensor.
        top: over how many of the largest (and the smallest) correlations the mean is taken.
        trusted: how many trusted inputs are kept to correlate with, of distinct content, drawn by seed.

    An input's trace is its loss under each of the disturbed models: the cross entropy (in nats) with the clean model's
    own answer, so that no label is needed. The disturbances are the same for all inputs.

    Columns: over the correlations with the kept inputs' traces, the mean of the ``top`` largest, the largest, the mean
    of the ``top`` smallest, the smallest, the mean, and the mean size over kept inputs of the same predicted class (0
    where there is none); and the logarithm of the trace's standard deviation. A trace without any variance has
    correlations of 0. An input that is itself kept is left out.

    While it runs, under the model's lock, the parameters point to disturbed copies; the original tensors are never
    written to, and the parameters point to them again afterwards, also after an error.

    References:
        Keenan, Leckie, Erfani 2026, arXiv 2604.18970.
    """

    draws: int = 80
    noise: float = 0.05
    top: int = 20
    trusted: int = 200

    def __post_init__(self) -> None:
        require_options(self)
        if self.draws < 3 or not self.noise > 0 or self.top < 1 or self.trusted < 2:
            options = f"draws={self.draws}, noise={self.noise}, top={self.top}, trusted={self.trusted}"
            raise FitError(options, needed="draws >= 3, noise > 0, top >= 1, trusted >= 2")

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedFunctionalCoupling:
        """Trace the kept trusted inputs; a forward pass over them per draw.

        Raises:
            FitError: when there are fewer than 2 distinct inputs, or the parameters have no values here to disturb.
        """
        require_inputs(trusted)
        kept = distinct(trusted, self.trusted, seed)
        answers, losses = _traces(model, kept, self, seed)
        return FittedFunctionalCoupling(self, model, seed, kept.digests, answers, losses)

    def restore(self, model: OpenModel, state: State) -> FittedFunctionalCoupling:
        """The fitted signature that wrote ``state``."""
        answers, losses = state.tensors["answers"].numpy(), state.tensors["losses"].numpy()
        digests = tuple(state.data["digests"])
        return FittedFunctionalCoupling(self, model, int(state.data["seed"]), digests, answers, losses)


@dataclass(frozen=True, eq=False)
class FittedFunctionalCoupling:
    """Traces of trusted inputs of one model.

    Attributes:
        spec: what was fitted.
        model: the model.
        seed: of the noise.
        digests: contents of the kept inputs.
        answers: (kept,) their predicted classes.
        losses: (kept, draws) their traces, in nats.
    """

    spec: FunctionalCoupling
    model: OpenModel
    seed: int
    digests: tuple[str, ...]
    answers: npt.NDArray[np.int64]
    losses: Floats

    @property
    def columns(self) -> tuple[Column, ...]:
        """Correlations, and the size of the trace."""
        return tuple(Column(f"coupling {name}", unit=name, block="coupling") for name in _NAMES)

    def __call__(self, inputs: Any) -> Signatures:
        """(n, 7) correlations and a log size; ``draws`` + 1 forward passes."""
        known = self.model.inputs(inputs)
        if not len(known):
            return signatures(known, self.columns, np.empty((0, len(_NAMES))))
        answers, losses = _traces(self.model, known, self.spec, self.seed)
        allowed = others(known, self.digests)
        coupling = np.where(allowed, _standard(losses) @ _standard(self.losses).T, np.nan)
        same = allowed & (answers[:, None] == self.answers)
        # Every row has at least all kept inputs but one; NaN is sorted to the end.
        top = min(self.spec.top, len(self.digests) - 1)
        rising, falling = np.sort(coupling, axis=1), -np.sort(-coupling, axis=1)
        found = {
            "top mean": falling[:, :top].mean(1),
            "largest": falling[:, 0],
            "bottom mean": rising[:, :top].mean(1),
            "smallest": rising[:, 0],
            "mean": np.nanmean(coupling, axis=1),
            "same answer": np.where(same, np.abs(coupling), 0.0).sum(1) / np.maximum(same.sum(1), 1),
            "log size": np.log(np.maximum(losses.std(1), 1e-12)),
        }
        return signatures(known, self.columns, np.stack([found[name] for name in _NAMES], axis=1))

    def state(self) -> State:
        """Traces, answers and contents of the kept inputs, and the seed of the noise."""
        tensors = {"answers": torch.from_numpy(self.answers), "losses": torch.from_numpy(self.losses)}
        return State(tensors, {"digests": list(self.digests), "seed": self.seed})


def _traces(
    model: OpenModel, inputs: Inputs, spec: FunctionalCoupling, seed: int
) -> tuple[npt.NDArray[np.int64], Floats]:
    """(n,) predicted classes and (n, draws) losses of them, in nats."""
    generator = torch.Generator().manual_seed(seed)
    with model.quiet():
        clean = table(model, inputs, 1, lambda batch: model.logits(batch).argmax(-1)[:, None])
        answers = clean[:, 0].astype(np.int64)

        def losses(batch: Batch) -> Tensor:
            logs = log_softmax(model.logits(batch).double(), -1)
            return -logs.gather(-1, torch.as_tensor(answers[batch.rows], device=logs.device)[:, None])

        columns = []
        for _ in range(spec.draws):
            with _disturbed(model.module, spec.noise, generator):
                columns.append(table(model, inputs, 1, losses))
    return answers, np.ascontiguousarray(np.concatenate(columns, axis=1))


@contextmanager
def _disturbed(module: nn.Module, noise: float, generator: torch.Generator) -> Iterator[None]:
    """Every floating-point parameter (tied ones once) with noise, for as long as it lasts.

    Parameters are pointed to other storage and back, so that not a bit of the original is ever written.
    """
    values = [value for value in module.parameters() if value.is_floating_point()]
    if any(value.is_meta for value in values):
        raise FitError("parameters without values here", causes=["a remote or offloaded model"])
    before = [value.data for value in values]
    made: dict[tuple[object, ...], Tensor] = {}
    try:
        for value, clean in zip(values, before, strict=True):
            storage = (clean.device, clean.data_ptr(), clean.shape, clean.stride())
            if storage not in made or not clean.numel():
                # On the CPU and in single precision: the same noise on every device.
                drawn = torch.randn(clean.shape, generator=generator).to(clean.device)
                size = clean.float().std(correction=0)
                made[storage] = (clean.float() + noise * size * drawn).to(clean.dtype)
            value.data = made[storage]
        yield
    finally:
        for value, clean in zip(values, before, strict=True):
            value.data = clean


def _standard(losses: Floats) -> Floats:
    """Traces less their mean, of length 1; zero where they have no variance."""
    centred = losses - losses.mean(1, keepdims=True)
    size = np.linalg.norm(centred, axis=1, keepdims=True)
    # Below this there is nothing but rounding.
    return np.where(size > 1e-12, centred / np.where(size > 0, size, 1.0), 0.0)
