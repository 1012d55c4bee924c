"""Locally consistent abstraction: a small linear picture of each layer, from which the next one can be predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from causalmad.config import require_options
from causalmad.errors import FitError, ModelError, SiteError
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.signatures.activations import Activations, FittedActivations, features
from causalmad.signatures.base import Column, Signatures, State, require_inputs, signatures
from causalmad.signatures.kept import distinct
from causalmad.signatures.table import table
from causalmad.targets import divergence

_BATCH = 256
_RATE = 1e-2  # of Adam, falling to zero
_SHARE = 4  # training inputs per principal component of a layer, at least
_FLOOR = 1e-3  # of the largest standard deviation: smaller components are rounding
_PARTS = ("inner", "offset", "weights", "bias", "out")  # of a step


@dataclass(frozen=True)
class LocallyConsistentAbstraction:
    """Errors of an abstract computation, learned on trusted inputs, at each of its steps.

    Every layer has an abstraction, a few linear combinations of its activations, and between neighbouring layers there
    is a small network that predicts the abstraction of the next from that of the last; the final one predicts the
    output. Abstractions and steps are trained together to be consistent. Each step starts from the true abstraction of
    its own layer (it is local), so that an error shows where it arises.

    Args:
        sites: role, path, glob or a list of them, at least two, in the order of the steps; ``auto`` is the residual
            stream after every block of a known architecture, and every nonlinear layer of any other module.
        positions: which token: a number (``-1`` is the last real one), the name of a position column, or ``all`` for
            the mean over the tokens. Inputs that are no tokens are averaged over space.
        size: numbers in an abstraction; fewer where a layer has fewer, or there are few trusted inputs.
        hidden: hidden units of a step beside its linear part; 0 leaves it linear.
        steps: batches of training.
        classes: classes of the output that are predicted, those of the largest mean trusted probability; all others
            are one more class.

    Columns: per step the squared error of the predicted abstraction over its size (about 1 where nothing can be
    predicted), and the Kullback-Leibler divergence from the model's output to the predicted one, in nats.

    Abstractions are white on the inputs that train them: each number has mean 0 and variance 1, and no two are
    correlated. So none is constant, which would be trivially consistent, and none repeats another. They are orthogonal
    combinations of the layer's whitened principal components, at most four times ``size`` of them and a quarter of the
    number of training inputs. The loss is the sum of the steps' errors and of the divergence over that of a constant
    prediction.

    One half of the trusted inputs trains the abstraction, and the reference leaves these out: it is more consistent on
    what it has seen than on anything new.

    References:
        Locally consistent abstractions: Jenner et al. 2024, "cupbearer". Exact abstractions: Beckers and Halpern 2019,
        arXiv 1812.03789; Geiger et al. 2021, arXiv 2106.02997.
    """

    sites: str | tuple[str, ...] = "auto"
    positions: int | str = -1
    size: int = 32
    hidden: int = 64
    steps: int = 500
    classes: int = 64

    def __post_init__(self) -> None:
        require_options(self)
        if min(self.size, self.steps, self.classes) < 1 or self.hidden < 0:
            options = f"size={self.size}, hidden={self.hidden}, steps={self.steps}, classes={self.classes}"
            raise FitError(options, needed="size, steps and classes of at least 1, hidden >= 0")

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedLocallyConsistentAbstraction:
        """Train abstractions and steps; two forward passes over half of the trusted inputs.

        Raises:
            FitError: when there are fewer than 8 distinct inputs.
            SiteError: when a site does not exist, or there is only one.
        """
        require_inputs(trusted)
        layers = Activations(self.sites, self.positions).fit(model, trusted)
        if len(layers.sites) < 2:
            raise SiteError(
                f"one site, {layers.sites[0]}, where steps from layer to layer are wanted",
                needed="at least two sites",
                tries=["sites='residual'", "sites='layers'"],
            )
        kept = distinct(trusted, least=2 * _SHARE)
        half = np.sort(np.random.default_rng([seed, 6]).permutation(len(kept))[: len(kept) // 2])
        classes = _classes(model, kept[half], self.classes)
        widths = [sum(column.site == str(site) for column in layers.columns) for site in layers.sites]

        def rows(batch: Batch) -> Tensor:
            values, logs = _read(model, layers, classes, batch)
            return torch.cat([*values, logs], 1)

        found = torch.from_numpy(table(model, kept[half], sum(widths) + len(classes), rows))
        *values, logs = found.split([*widths, len(classes)], 1)
        maps, steps = _train(values, logs, self, seed)
        donors = tuple(kept.digests[row] for row in half)
        return FittedLocallyConsistentAbstraction(model, layers, classes, maps, steps, donors)

    def restore(self, model: OpenModel, state: State) -> FittedLocallyConsistentAbstraction:
        """The fitted signature that wrote ``state``."""
        layers = Activations().restore(model, State({}, state.data["layers"]))
        count, arrays = len(layers.sites), state.tensors
        maps = tuple((arrays[f"mean:{i}"], arrays[f"map:{i}"]) for i in range(count))
        steps = tuple({part: arrays[f"{part}:{i}"] for part in _PARTS} for i in range(count))
        donors = tuple(map(str, state.data["donors"]))
        return FittedLocallyConsistentAbstraction(model, layers, arrays["classes"], maps, steps, donors)


@dataclass(frozen=True, eq=False)
class FittedLocallyConsistentAbstraction:
    """The abstract computation beside one model.

    Attributes:
        model: the model.
        layers: reads the activations.
        classes: (outputs,) the classes that are predicted; -1, which comes last, stands for all others.
        maps: per layer its trusted mean (features,) and the map (features, size) to its abstraction, in float64.
        steps: per layer the arrays of the step to the next abstraction, the last one to the output.
        donor_digests: contents of the inputs that trained all this, which the reference leaves out.
    """

    model: OpenModel
    layers: FittedActivations
    classes: Tensor
    maps: tuple[tuple[Tensor, Tensor], ...]
    steps: tuple[Mapping[str, Tensor], ...]
    donor_digests: tuple[str, ...]

    @property
    def columns(self) -> tuple[Column, ...]:
        """An error per step; the last is the divergence of the output."""
        sites = self.layers.sites
        places = ["" if site.position is None else str(site.position) for site in sites]
        pairs = [(f"{a} -> {b} inconsistency", str(b), place) for (a, b), place in zip(pairwise(sites), places[1:])]
        last = (f"{sites[-1]} -> output divergence", str(sites[-1]), places[-1])
        return tuple(
            Column(name, site, name.rpartition(" ")[2], place, "abstraction") for name, site, place in [*pairs, last]
        )

    def __call__(self, inputs: Any) -> Signatures:
        """(n, layers) errors; one forward pass."""
        known = self.model.inputs(inputs)
        return signatures(known, self.columns, table(self.model, known, len(self.columns), self._rows))

    def state(self) -> State:
        """The maps, the steps, and which inputs trained them."""
        tensors = {f"mean:{i}": mean for i, (mean, _) in enumerate(self.maps)}
        tensors |= {f"map:{i}": found for i, (_, found) in enumerate(self.maps)}
        tensors |= {f"{part}:{i}": step[part] for i, step in enumerate(self.steps) for part in _PARTS}
        data = {"layers": self.layers.state().data, "donors": list(self.donor_digests)}
        return State({**tensors, "classes": self.classes}, data)

    def _rows(self, batch: Batch) -> Tensor:
        values, logs = _read(self.model, self.layers, self.classes, batch)
        abstract = [(value - mean) @ found for value, (mean, found) in zip(values, self.maps)]
        return torch.stack(_errors(abstract, logs, self.steps), 1)


def _read(model: OpenModel, layers: FittedActivations, classes: Tensor, batch: Batch) -> tuple[list[Tensor], Tensor]:
    """Per site (batch, features) activations, and (batch, outputs) log-probabilities, all in double on the CPU."""
    run = model.run(batch, read=list({site.place: None for site in layers.sites}))
    if run.logits is None:
        raise ModelError("the run gave no logits")
    values = [features(run.values[site.place], site, batch).double().cpu() for site in layers.sites]
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise FitError("NaN or infinite activations", causes=["NaN in the inputs", "overflow in half precision"])
    return values, _lumped(log_softmax(run.logits.double(), -1).cpu(), classes)


def _lumped(logs: Tensor, classes: Tensor) -> Tensor:
    """(batch, outputs) log-probabilities of the classes, all that are not among them being one, from those of all."""
    if int(classes[-1]) >= 0:
        return logs[:, classes]
    own = classes[:-1]
    rest = logs.index_fill(1, own, float("-inf")).logsumexp(1, keepdim=True)
    return torch.cat([logs[:, own], rest], 1)


def _classes(model: OpenModel, inputs: Inputs, most: int) -> Tensor:
    """(outputs,) the classes of the largest mean probability, in their order, and -1 for the others, if any."""
    total = torch.zeros(())
    with model.quiet():
        for batch in model.batches(inputs):
            total = total + model.logits(batch).double().softmax(-1).sum(0).cpu()
    if len(total) <= most:
        return torch.arange(len(total))
    top = torch.argsort(total, descending=True, stable=True)[:most].sort().values
    return torch.cat([top, torch.tensor([-1])])


def _predicted(step: Mapping[str, Tensor], abstract: Tensor) -> Tensor:
    """What a step makes of an abstraction (batch, size): its linear part and its hidden units."""
    hidden = (abstract @ step["inner"] + step["offset"]).relu()
    return abstract @ step["weights"] + step["bias"] + hidden @ step["out"]


def _errors(abstract: Sequence[Tensor], logs: Tensor, steps: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """Per step (batch,): mean squared error of the next abstraction, and last the divergence of the output."""
    found = [
        (_predicted(step, before) - after).square().mean(1) for step, (before, after) in zip(steps, pairwise(abstract))
    ]
    return [*found, divergence(logs, log_softmax(_predicted(steps[-1], abstract[-1]), -1))]


def _whitened(values: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """(features,) mean and (features, components) map to principal components of variance 1.

    A layer that is constant has one component, of zeros.
    """
    mean = values.mean(0)
    _, sizes, right = torch.linalg.svd(values - mean, full_matrices=False)
    spread = sizes / len(values) ** 0.5
    # What is constant on the trusted inputs has a spread of rounding, against the size of the values themselves.
    large = spread > max(_FLOOR * float(spread[0]), 1e-6 * float(values.square().mean().sqrt()))
    count = min(int(large.sum()), most)
    if not count:
        return mean, torch.zeros(values.shape[1], 1, dtype=values.dtype)
    return mean, right[:count].T / spread[:count]


def _orthonormal(free: Tensor) -> Tensor:
    """The orthonormal columns that Gram and Schmidt make of those of a matrix."""
    q, r = torch.linalg.qr(free)
    found: Tensor = q * r.diagonal().sign()
    return found


def _train(
    values: Sequence[Tensor], logs: Tensor, spec: LocallyConsistentAbstraction, seed: int
) -> tuple[tuple[tuple[Tensor, Tensor], ...], tuple[Mapping[str, Tensor], ...]]:
    """Maps and steps from trusted activations of each layer, (n, features), and log-probabilities (n, outputs)."""
    draw, n = torch.Generator().manual_seed(seed), len(logs)
    most = max(min(n // _SHARE, _SHARE * spec.size), 1)
    bases = [_whitened(value, most) for value in values]
    white = [(value - mean) @ basis for value, (mean, basis) in zip(values, bases)]
    sizes = [min(part.shape[1], spec.size) for part in white]
    usual = logs.exp().mean(0).clamp(min=1e-30).log()
    scale = max(float(divergence(logs, usual.expand_as(logs)).mean()), 1e-6)  # of the best constant prediction
    with torch.inference_mode(False), torch.enable_grad():
        # They start as the leading principal components, and the steps as what predicts a constant.
        free = [torch.eye(part.shape[1], size, dtype=torch.float64) for part, size in zip(white, sizes)]
        steps = [_start(before, after, spec.hidden, draw) for before, after in pairwise([*sizes, logs.shape[1]])]
        steps[-1]["bias"] = usual.clone()
        leaves = [leaf.requires_grad_(True) for leaf in [*free, *(leaf for step in steps for leaf in step.values())]]
        adam = torch.optim.Adam(leaves, lr=_RATE)
        for step in range(spec.steps):
            adam.param_groups[0]["lr"] = _RATE * (1 - step / spec.steps)
            rows = torch.arange(n) if n <= _BATCH else torch.randint(n, (_BATCH,), generator=draw)
            abstract = [part[rows] @ _orthonormal(turn) for part, turn in zip(white, free)]
            *errors, last = _errors(abstract, logs[rows], steps)
            loss = last.mean() / scale + sum((error.mean() for error in errors), torch.zeros(()))
            for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves)):
                leaf.grad = gradient
            adam.step()
    found = [(mean, basis @ _orthonormal(turn.detach())) for (mean, basis), turn in zip(bases, free)]
    maps = tuple((mean.contiguous(), made.contiguous()) for mean, made in found)
    return maps, tuple({part: leaf.detach().clone() for part, leaf in step.items()} for step in steps)


def _start(before: int, after: int, hidden: int, draw: torch.Generator) -> dict[str, Tensor]:
    """A step that predicts zero, with hidden units drawn at random."""
    inner = torch.randn(before, hidden, generator=draw, dtype=torch.float64) / before**0.5
    shapes = {"offset": (hidden,), "weights": (before, after), "bias": (after,), "out": (hidden, after)}
    return {"inner": inner, **{part: torch.zeros(shape, dtype=torch.float64) for part, shape in shapes.items()}}
