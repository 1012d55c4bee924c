"""How captum is called: one place, one batch and one baseline at a time, so that rows cannot touch each other."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from causalmad.errors import CausalmadError, ModelError
from causalmad.hypotheses.donors import from_end
from causalmad.inputs import Batch
from causalmad.models import OpenModel
from causalmad.models.logits import read_logits
from causalmad.models.places import fresh
from causalmad.signatures.effects import input_mask, settled
from causalmad.signatures.units import Group
from causalmad.sites import Place
from causalmad.targets import Target, bound

GRADIENTS = ("LayerIntegratedGradients", "LayerGradientXActivation")
PERTURBATIONS = ("FeatureAblation", "ShapleyValueSampling")
AT_LAYERS = ("LayerConductance", "InternalInfluence", "LayerDeepLift")
METHODS = (*GRADIENTS, *PERTURBATIONS, *AT_LAYERS)


@dataclass(frozen=True, eq=False)
class Question:
    """What is attributed, and to what.

    Attributes:
        model: the opened model.
        batch: the inputs.
        place: where.
        clean: (batch, ...) the activation there, or the input for the methods that follow a line between inputs.
        logits: (batch, classes) clean logits.
        target: read-out that is attributed.
        group: the units, for perturbations.
        longest: tokens of the longest trusted input; positions further from the end are one unit.
    """

    model: OpenModel
    batch: Batch
    place: Place
    clean: Tensor
    logits: Tensor
    target: Target
    group: Group
    longest: int

    def read(self, value: Tensor, rows: Tensor) -> Tensor:
        """(variants,) target of the model with its activation at the place replaced, differentiable in ``value``.

        Args:
            value: (variants, ...) activations.
            rows: (variants,) of which input of the batch each is a variant; captum repeats it as it repeats the values.
        """
        found: Tensor = _Rest.apply(value, rows, self)  # type: ignore[no-untyped-call]
        return found


class _Rest(torch.autograd.Function):
    """The rest of the model after a place, as a function that autograd can differentiate without seeing inside."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rows: Tensor, question: Question) -> Tensor:
        batch = question.batch.take(rows.cpu().numpy())
        asked = bound(question.target, question.logits[rows])
        point = value.detach()
        edits = {question.place: lambda _: point}
        if not ctx.needs_input_grad[0]:
            clean = question.logits[rows].double()
            logits = settled(question.model.logits(batch, edits), clean)
            asked = bound(question.target, clean)
        else:
            run = question.model.run(batch, read=[question.place], edits=edits, target=asked)
            ctx.save_for_backward(run.grads[question.place])
            logits = run.logits if run.logits is not None else question.model.logits(batch, edits)
        return asked.bind(logits)(logits).detach().clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = slopes
        (grad,) = ctx.saved_tensors
        return slope.reshape(-1, *[1] * (grad.ndim - 1)) * grad, None, None


def attribute(method: str, question: Question, base: Tensor, options: Mapping[str, int]) -> Tensor:
    """(batch, ...) contributions of all entries of the place, by one of captum's methods.

    Args:
        method: one of :data:`METHODS`.
        question: what is attributed.
        base: (batch, ...) the baseline, of the shape of ``question.clean``.
        options: ``steps``, ``samples`` and ``seed``.

    Raises:
        ModelError: when captum cannot work with this model.
    """
    if method in AT_LAYERS and question.model.standing is not None:
        raise ModelError(
            f"{method} runs the plain module, on which edits cannot stand",
            causes=["a repair, which replaces parts of the model"],
            tries=["method='LayerIntegratedGradients'"],
        )
    try:
        with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"captum\.")  # about what is on purpose here
            return _attribute(method, question, base, options).detach()
    except CausalmadError:
        raise
    except Exception as error:
        raise ModelError(
            f"captum's {method} at {question.place} raised {type(error).__name__}: {error}",
            causes=["a model that captum cannot take, such as one that uses a module twice"],
            tries=["method='LayerIntegratedGradients'", "AttributionPatching()"],
        ) from error


def _attribute(method: str, question: Question, base: Tensor, options: Mapping[str, int]) -> Tensor:
    from captum import attr

    # Tensors of the engine may be of an inference mode, which autograd cannot take.
    clean, base = question.clean.detach().clone(), base.detach().clone()
    rows = torch.arange(len(question.batch), device=clean.device)
    # Points of a line that share a run: as many as a batch holds, and two of every input where there is memory.
    along = {
        "baselines": base,
        "n_steps": options["steps"],
        "method": "riemann_middle",
        "internal_batch_size": max(question.model.batch_size, min(2, question.model.batching.variants) * len(rows)),
    }
    if method == "LayerGradientXActivation":
        found = attr.InputXGradient(question.read).attribute(clean, additional_forward_args=(rows,))
    elif method == "LayerIntegratedGradients":
        found = attr.IntegratedGradients(question.read).attribute(clean, additional_forward_args=(rows,), **along)
    elif method in PERTURBATIONS:
        found = _perturbed(method, question, clean, base, rows, options)
    else:
        answer = _Answer(question)
        layer = answer.module.get_submodule(question.place.path)
        sides = {"attribute_to_layer_input": question.place.side == "input"}
        if method == "LayerDeepLift":
            along, clean = {"baselines": base}, clean.requires_grad_(True)
        explainer = getattr(attr, method)(answer, layer)
        found = explainer.attribute(clean, additional_forward_args=(rows,), **sides, **along)
    first: Tensor = found if isinstance(found, Tensor) else found[0]
    return first


def _perturbed(
    method: str, question: Question, clean: Tensor, base: Tensor, rows: Tensor, options: Mapping[str, int]
) -> Tensor:
    """Every unit's effect, shared out equally among its entries."""
    from captum import attr

    ids, count = _unit_ids(question, clean)
    # What belongs to no unit stays as it is.
    base = torch.where(ids < count, base, clean)
    call = {"baselines": base, "feature_mask": ids, "additional_forward_args": (rows,)}
    if method == "FeatureAblation":
        found = attr.FeatureAblation(question.read).attribute(clean, **call)
    else:
        explainer = attr.ShapleyValueSampling(question.read)
        explainer.permutation_generator = _orders(count + 1, options["seed"])
        found = explainer.attribute(clean, n_samples=options["samples"], **call)
    size = torch.zeros(len(ids), count + 1, device=ids.device, dtype=found.dtype)
    size.scatter_add_(1, ids.flatten(1), torch.ones_like(ids.flatten(1), dtype=found.dtype))
    shared = found / size.gather(1, ids.flatten(1)).reshape(found.shape)
    return torch.where(ids < count, shared, 0)


def _orders(count: int, seed: int) -> Callable[[int, int], Iterator[list[int]]]:
    """Random orders of the units that depend on the seed alone: a batch that lacks the last ones leaves them out."""

    def orders(present: int, samples: int) -> Iterator[list[int]]:
        draw = np.random.default_rng([seed, 3])
        for _ in range(samples):
            yield [int(unit) for unit in draw.permutation(count) if unit < present]

    return orders


def _unit_ids(question: Question, value: Tensor) -> tuple[Tensor, int]:
    """(batch, ...) which unit each entry of an activation belongs to, and their number, which means none of them."""
    group, batch = question.group, question.batch
    real = None
    if batch.mask is not None and value.ndim >= 3 and value.shape[1] == batch.mask.shape[1]:
        real = batch.mask.to(value.device).reshape(*batch.mask.shape, *[1] * (value.ndim - 2))
    if group.ragged and batch.mask is not None and real is not None:
        count = question.longest + 1
        ids = from_end(batch.mask).clamp(0, question.longest).to(value.device).reshape(real.shape).expand(value.shape)
    elif group.masks:
        count = len(group.masks)
        ids = torch.full(value.shape, count, device=value.device)
        for unit in range(count):
            own = input_mask(group, torch.full((len(batch),), unit), batch).to(value.device)
            ids = torch.where(own.reshape(*own.shape, *[1] * (value.ndim - own.ndim)), unit, ids)
    else:
        own_sites = [site for site in group.sites if site.place == question.place]
        count = len(own_sites)
        ids = torch.full(value.shape, count, device=value.device)
        for unit, site in enumerate(own_sites):
            nothing = torch.zeros_like(value)
            whole = site.at(None)
            own = whole.put(nothing, torch.ones_like(whole.take(nothing, batch)), batch) > 0
            ids = torch.where(own, unit, ids)
    return (ids if real is None else torch.where(real, ids, count)).contiguous(), count


class _Answer(nn.Module):
    """The model as captum wants it for a layer: a module from inputs to one number each.

    It holds a copy of the structure that shares all weights, since captum's hooks and attributes do not all go.
    """

    def __init__(self, question: Question) -> None:
        super().__init__()
        self.question = question
        values = [*question.model.module.parameters(), *question.model.module.buffers()]
        self.module: nn.Module = copy.deepcopy(question.model.module, {id(value): value for value in values})

    def forward(self, main: Tensor, rows: Tensor) -> Tensor:
        question = self.question
        batch = question.batch.take(rows.cpu().numpy()).with_main(main)
        args, kwargs = fresh(*batch.call)
        logits = read_logits(self.module(*args, **kwargs), batch, -1)
        found: Tensor = bound(question.target, question.logits[rows]).bind(logits)(logits)
        return found
