"""Finetuning shift: how far the output moves when a copy of the model is finetuned on trusted inputs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from causalmad.config import require_options
from causalmad.errors import CausalmadError, FitError, ModelError
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.models.hooks import Hooks
from causalmad.models.logits import read_logits
from causalmad.signatures.base import Column, Signatures, State, require_inputs, signatures
from causalmad.signatures.kept import distinct
from causalmad.signatures.table import table
from causalmad.targets import divergence

_BATCH = 64  # inputs a step
_NAMES = ("divergence", "answer")


@dataclass(frozen=True)
class FinetuningShift:
    """Divergence between the model and a copy of it that was finetuned on trusted inputs.

    Training on trusted inputs alone keeps what they need and lets go of the rest: an input whose answer rests on
    something else, such as a backdoor, gets another output from the copy.

    Args:
        epochs: how often the inputs are gone through.
        rate: step size of Adam.
        decay: decoupled weight decay; weights that no trusted input uses shrink by 1 - ``rate`` * ``decay`` a step.

    The copy learns the model's own answers at the last token (no label is needed) with the cross entropy and Adam, in
    batches of 64 drawn anew in every epoch. It stays in eval mode: no dropout, and running statistics as they are. The
    user's model is not touched.

    Columns, in nats: the Kullback-Leibler divergence from the model's output to the copy's; and the log-probability of
    the model's answer under the copy, less that under the model.

    One half of the trusted inputs trains the copy, and the reference leaves these out: the copy is surer of what it was
    trained on than of anything new.

    Memory: while fitting, the parameters five times over (the model, the copy, its gradient and Adam's two averages);
    afterwards twice. What is saved is every parameter that changed, as large as the model. Half precision loses small
    steps; such a model is better finetuned after ``model.float()``.

    References:
        The finetuning detector of Jenner et al. 2024, "cupbearer"; finetuning against backdoors: Liu, Dolan-Gavitt,
        Garg 2018, arXiv 1805.12185. Decoupled weight decay: Loshchilov and Hutter 2019, arXiv 1711.05101.
    """

    epochs: int = 10
    rate: float = 1e-3
    decay: float = 0.01

    def __post_init__(self) -> None:
        require_options(self)
        if self.epochs < 1 or not 0 < self.rate < np.inf or not 0 <= self.decay < np.inf:
            options = f"epochs={self.epochs}, rate={self.rate}, decay={self.decay}"
            raise FitError(options, needed="epochs >= 1, rate > 0, decay >= 0")

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedFinetuningShift:
        """Finetune a copy: a forward and a backward pass over half of the trusted inputs per epoch.

        Raises:
            FitError: when there are fewer than 4 distinct inputs, the model cannot be copied or has no parameters to
                train, or training diverges.
        """
        require_inputs(trusted)
        kept = distinct(trusted, least=4)
        half = np.sort(np.random.default_rng([seed, 6]).permutation(len(kept))[: len(kept) // 2])
        other = _copied(model)
        _finetune(other, _answers(model, kept[half]), kept[half], self, seed)
        return FittedFinetuningShift(model, other.module, tuple(kept.digests[row] for row in half))

    def restore(self, model: OpenModel, state: State) -> FittedFinetuningShift:
        """The fitted signature that wrote ``state``."""
        other = _copied(model)
        with torch.no_grad():
            for name, value in _parameters(other.module).items():
                if name in state.tensors:
                    value.copy_(state.tensors[name])
        return FittedFinetuningShift(model, other.module, tuple(map(str, state.data["donors"])))


@dataclass(frozen=True, eq=False)
class FittedFinetuningShift:
    """A model beside its finetuned copy.

    Attributes:
        model: the model.
        tuned: the copy; it belongs to this signature alone.
        donor_digests: contents of the inputs that trained the copy, which the reference leaves out.
    """

    model: OpenModel
    tuned: nn.Module
    donor_digests: tuple[str, ...]

    @property
    def columns(self) -> tuple[Column, ...]:
        """The divergence, and what becomes of the answer."""
        return tuple(Column(f"finetuning {name}", unit=name, block="finetuning") for name in _NAMES)

    def __call__(self, inputs: Any) -> Signatures:
        """(n, 2) nats; a forward pass of the model and one of the copy."""
        known = self.model.inputs(inputs)
        other = _view(self.model, self.tuned)
        with other.quiet():
            values = table(self.model, known, len(_NAMES), lambda batch: _shift(*_logits(self.model, other, batch)))
        return signatures(known, self.columns, values)

    def state(self) -> State:
        """The parameters that finetuning changed, and which inputs trained them."""
        before = _parameters(self.model.module)
        now = {name: value.detach().cpu() for name, value in _parameters(self.tuned).items()}
        changed = {name: value for name, value in now.items() if not torch.equal(value, before[name].detach().cpu())}
        tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in changed.items()}
        return State(tensors, {"donors": list(self.donor_digests)})


def _logits(model: OpenModel, other: OpenModel, batch: Any) -> tuple[Tensor, Tensor]:
    return model.logits(batch), other.logits(batch)


def _shift(before: Tensor, after: Tensor) -> Tensor:
    """(batch, 2) divergence and change of the answer's log-probability, from logits (batch, classes)."""
    clean, tuned = log_softmax(before.double(), -1), log_softmax(after.double(), -1)
    answer = clean.argmax(-1, keepdim=True)
    return torch.stack([divergence(clean, tuned), (tuned - clean).gather(-1, answer).squeeze(-1)], 1)


def _answers(model: OpenModel, inputs: Inputs) -> Tensor:
    """(n,) the model's own answers."""
    return torch.from_numpy(table(model, inputs, 1, lambda batch: model.logits(batch).argmax(-1)[:, None])[:, 0]).long()


def _view(model: OpenModel, module: nn.Module) -> OpenModel:
    """Another module, opened as the model is; always run with plain hooks, since no wrapper of the user's knows it."""
    return replace(model, module=module, handle=module, engine=Hooks())


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Floating-point parameters by name, tied ones once."""
    return {name: value for name, value in module.named_parameters() if value.is_floating_point()}


def _copied(model: OpenModel) -> OpenModel:
    """A copy of the module in eval mode, which shares nothing with it."""
    values = _parameters(model.module).values()
    if not values or any(value.is_meta for value in values):
        raise FitError(
            f"{model.name} has no floating-point parameters with values here",
            needed="parameters that can be finetuned",
            causes=["a remote or offloaded model", "a model without weights"],
        )
    # Behind the lock nobody else's hooks or noise are on it; a copy made in inference mode could not be trained.
    with model.quiet(), torch.inference_mode(False):
        try:
            made = copy.deepcopy(model.module)
        except Exception as error:
            raise FitError(
                f"{model.name} cannot be copied: {type(error).__name__}: {error}",
                causes=["too little memory for a second model", "attributes that copy.deepcopy refuses"],
                tries=["copy.deepcopy(model), to see it alone"],
            ) from error
    return _view(model, made.eval())


@contextmanager
def _trainable(model: OpenModel) -> Iterator[list[nn.Parameter]]:
    """Parameters with gradients, for as long as it lasts; buffers and generators are restored."""
    # Tensors that are made in an enclosing inference mode could not be trained.
    with model.quiet(), torch.inference_mode(False), torch.enable_grad():
        values = list(_parameters(model.module).values())
        try:
            for value in values:
                value.requires_grad_(True)
            yield values
        finally:
            for value in values:
                value.requires_grad_(False)
                value.grad = None


def _finetune(model: OpenModel, answers: Tensor, inputs: Inputs, spec: FinetuningShift, seed: int) -> None:
    """Train the module of a copy on the answers (n,) to inputs."""
    draw, done = torch.Generator().manual_seed(seed), 0
    with _trainable(model) as values:
        adam = torch.optim.AdamW(values, lr=spec.rate, weight_decay=spec.decay)
        for _ in range(spec.epochs):
            for rows in torch.randperm(len(inputs), generator=draw).split(_BATCH):
                try:
                    _step(model, inputs[rows.numpy()], answers[rows], values, adam)
                except CausalmadError as error:
                    if not done:
                        raise
                    raise _diverged(model, spec, f"after {done} steps: {error.what}") from error
                done += 1
        if not all(bool(torch.isfinite(value).all()) for value in values):
            raise _diverged(model, spec, f"after {done} steps: NaN or infinite parameters")


def _diverged(model: OpenModel, spec: FinetuningShift, how: str) -> FitError:
    return FitError(
        f"the finetuned copy of {model.name} failed {how}",
        causes=["the steps are too large", "half precision"],
        tries=[f"rate={spec.rate / 10:g}", "model.float()"],
    )


def _step(
    model: OpenModel, inputs: Inputs, answers: Tensor, values: list[nn.Parameter], adam: torch.optim.Optimizer
) -> None:
    """One step of Adam on the mean loss over inputs, in as many batches as the model needs for them."""
    for value in values:
        value.grad = torch.zeros_like(value)
    for batch in model.batches(inputs):
        args, kwargs = model._call(batch, -1)
        try:
            result = model.module(*args, **kwargs)
        except Exception as error:
            raise ModelError(f"{model.name} raised {type(error).__name__} with gradients on: {error}") from error
        logits = read_logits(result, batch, -1)
        wanted = answers[torch.as_tensor(batch.rows)].to(logits.device)
        loss = cross_entropy(logits, wanted, reduction="sum") / len(inputs)
        if not loss.requires_grad:
            raise ModelError(
                f"{model.name} gives an output without gradients",
                causes=["torch.no_grad() or .detach() in its forward"],
                tries=["another signature, such as Activations() or ResamplingProfile()"],
            )
        # Not backward(), which would leave gradients on whatever else asks for them. A parameter that plays no part
        # has a gradient of zero, so that it decays as well.
        found = torch.autograd.grad(loss, values, allow_unused=True, materialize_grads=True)
        for value, gradient in zip(values, found):
            value.grad = gradient if value.grad is None else value.grad + gradient
    adam.step()
