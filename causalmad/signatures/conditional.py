"""Conditional: what a signature has beyond what the output, or anything else, already tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from causalmad.config import require_options
from causalmad.errors import FitError, ModelError
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.signatures.activations import Activations
from causalmad.signatures.attribution_patching import AttributionPatching
from causalmad.signatures.base import Column, FittedSignature, Signature, Signatures, State, require_inputs, signatures
from causalmad.signatures.input_only import InputOnly
from causalmad.signatures.kept import distinct, own_rows
from causalmad.signatures.nested import (
    DonorsOf,
    digests_of,
    donors_of,
    groups_of,
    on,
    packed,
    require_signature,
    unpacked,
)
from causalmad.signatures.output_only import confidence
from causalmad.signatures.probes import predicted
from causalmad.signatures.table import table
from causalmad.signatures.units import Group

Floats = npt.NDArray[np.float64]

_RIDGES = np.logspace(-4, 4, 17)  # relative to the mean squared singular value of the condition
_WIDEST = 64  # classes; the log-probabilities of more are reduced to as many principal components
_MOST = 0.5  # mean leverage, the share of trusted rows that the regression may use up as degrees of freedom
_SMALLEST = 1e-3  # of a column's own size: residuals below are rounding
_KINDS = ("logits", "margin", "class", "activations", "input")


@dataclass(frozen=True)
class Conditional:
    """What is left of a signature once the output, or anything else, is known: its ridge residual.

    An anomaly that comes with another answer, or with a smaller margin, looks unusual in any signature; here only what
    the condition does not predict is left. It protects against shifts of labels and of difficulty.

    Args:
        signature: whose residual; by default attribution patching.
        on: the condition, known of any input without a label: ``logits`` (centred log-probabilities; of more than 64
            classes the 64 leading principal components on trusted inputs), ``margin`` (margin and entropy), ``class``
            (the predicted class; one that no trusted input has counts as none), ``activations``, ``input`` (counts of
            tokens, or raw numbers), or any other signature.

    Columns are those of the signature: the residual under a ridge regression on the standardised condition, fitted on
    trusted inputs (no donors, each content once), divided by the standard deviation of trusted residuals.

    The penalty of every column, out of a fixed grid, has the smallest leave-one-out error among those that use up at
    most half of the trusted inputs as degrees of freedom, so that a condition with as many columns as there are trusted
    inputs does no harm. A trusted input on which the regression stands would look less surprising than a new one: its
    residual is that of the regression fitted without it (exact for ridge regression: the residual over one minus its
    leverage), and so are the residuals whose deviation is taken.

    Memory: while fitting on ``logits``, (trusted inputs, classes) in double precision.

    Raises:
        FitError: on an unknown condition.

    References:
        Ridge regression and its leave-one-out residuals: Golub, Heath and Wahba 1979, "Generalized cross-validation as
        a method for choosing a good ridge parameter".
    """

    signature: Signature = field(default_factory=AttributionPatching)
    on: str | Signature = "logits"

    def __post_init__(self) -> None:
        require_options(self)
        require_signature(self.signature, "signature")
        if isinstance(self.on, str) and self.on not in _KINDS:
            raise FitError(f"on={self.on!r}", needed="a signature, or one of these", tries=list(map(repr, _KINDS)))
        if not isinstance(self.on, str):
            require_signature(self.on, "on")

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedConditional:
        """Fit the signature, the condition and the regression; each runs once more over the trusted inputs.

        Raises:
            FitError: when fewer than 3 distinct inputs are no donors.
        """
        require_inputs(trusted)
        parts = tuple(spec.fit(model, trusted, seed) for spec in self._specs)
        chosen = set(digests_of(parts))
        kept = distinct(trusted[[i for i, key in enumerate(trusted.digests) if key not in chosen]], least=3)
        condition = _Condition.fit(self.on, model, kept)
        ridge = Ridge.fit(condition(model, kept, parts[1:]), _values(parts[0], kept))
        return FittedConditional(self, model, parts, condition, ridge, kept.digests)

    def restore(self, model: OpenModel, state: State) -> FittedConditional:
        """The fitted signature that wrote ``state``."""
        parts = unpacked(self._specs, model, state)
        arrays = {name: value.numpy() for name, value in state.tensors.items()}
        condition = _Condition(self.on, *(arrays[f"condition:{name}"] for name in ("classes", "mean", "basis")))
        ridge = Ridge(**{name: arrays[f"ridge:{name}"] for name in Ridge.__dataclass_fields__})
        return FittedConditional(self, model, parts, condition, ridge, tuple(state.data["digests"]))

    @property
    def _specs(self) -> tuple[Signature, ...]:
        """The signature, and the condition where that is one too."""
        named: Mapping[str, Signature] = {"activations": Activations(), "input": InputOnly()}
        condition = named.get(self.on) if isinstance(self.on, str) else self.on
        return (self.signature,) if condition is None else (self.signature, condition)


@dataclass(frozen=True, eq=False)
class FittedConditional:
    """The residual of a signature of one model.

    Attributes:
        spec: what was fitted.
        model: the model.
        parts: the signature, and the condition where it is a signature too.
        condition: reads the condition.
        ridge: from the condition to the signature.
        digests: contents of the trusted inputs on which the regression stands.
    """

    spec: Conditional
    model: OpenModel
    parts: tuple[FittedSignature, ...]
    condition: _Condition
    ridge: Ridge
    digests: tuple[str, ...]

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the numbers are."""
        return self.parts[0].columns

    @property
    def donor_digests(self) -> tuple[str, ...]:
        """Contents of the donors, which the reference leaves out."""
        return digests_of(self.parts)

    @property
    def groups(self) -> tuple[Group, ...] | None:
        """The units of the signature, for repairs."""
        return groups_of(self.parts[:1])

    @property
    def donors_of(self) -> DonorsOf | None:
        """Donors of an input, where the signature chooses donors for every input."""
        return donors_of(self.parts)

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) residuals, in trusted standard deviations."""
        known = self.model.inputs(inputs)
        if not len(known):
            return signatures(known, self.columns, np.empty((0, len(self.columns))))
        signature, *conditions = (on(part, self.model) for part in self.parts)
        given = self.condition(self.model, known, tuple(conditions))
        residuals = self.ridge.residuals(given, _values(signature, known), own_rows(known, self.digests))
        return signatures(known, self.columns, residuals)

    def state(self) -> State:
        """The states of the parts, the condition, and the regression with the inputs on which it stands."""
        inner = packed(self.parts)
        arrays = {f"condition:{name}": getattr(self.condition, name) for name in ("classes", "mean", "basis")}
        arrays |= {f"ridge:{name}": value for name, value in vars(self.ridge).items()}
        tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
        return State({**inner.tensors, **tensors}, {**inner.data, "digests": list(self.digests)})


@dataclass(frozen=True, eq=False)
class Ridge:
    """Ridge regression of many columns, each with its own penalty; trusted rows are predicted without themselves.

    Attributes:
        mean: (c,) trusted mean of the condition.
        unit: (c,) trusted standard deviation of the condition, infinite where it does not vary.
        target: (d,) trusted mean of the columns.
        weights: (c, d) the map from standardised condition to centred columns.
        leverages: (trusted, penalties) leverage of each trusted row, its intercept included.
        which: (d,) the penalty of each column.
        spread: (d,) standard deviation of trusted leave-one-out residuals, at least a thousandth of the column's size.
    """

    mean: Floats
    unit: Floats
    target: Floats
    weights: Floats
    leverages: Floats
    which: npt.NDArray[np.int64]
    spread: Floats

    @classmethod
    def fit(cls, given: Floats, columns: Floats) -> Ridge:
        """The regression of (n, d) columns on an (n, c) condition."""
        n, mean, target = len(given), given.mean(0), columns.mean(0)
        unit = given.std(0)
        unit = np.where(unit > 1e-6 * np.abs(given).max(0), unit, np.inf)
        left, sizes, right = np.linalg.svd((given - mean) / unit, full_matrices=False)
        inside = left.T @ (columns - target)
        kept = sizes**2 / (sizes**2 + (_RIDGES * (float((sizes**2).mean()) or 1.0))[:, None])
        leverages = 1 / n + left**2 @ kept.T
        errors = np.stack(
            [
                (((columns - target - left @ (share[:, None] * inside)) / (1 - own)[:, None]) ** 2).mean(0)
                for share, own in zip(kept, leverages.T)
            ]
        )
        # Where most of the trusted rows are used up, their errors without themselves are too noisy to choose by.
        errors[(leverages.mean(0) > _MOST) & (np.arange(len(_RIDGES)) < len(_RIDGES) - 1)] = np.inf
        which = errors[::-1].argmin(0)  # of equal ones the largest penalty
        which = len(_RIDGES) - 1 - which
        inverse = np.divide(kept, sizes, out=np.zeros_like(kept), where=sizes > 1e-12 * max(float(sizes.max()), 1e-300))
        weights = np.ascontiguousarray(right.T @ (inverse[which].T * inside))
        size = np.sqrt((columns**2).mean(0))
        spread = np.maximum(np.sqrt(errors.min(0)), _SMALLEST * size)
        spread = np.where(spread > 0, spread, 1.0)
        return cls(mean, unit, target, weights, np.ascontiguousarray(leverages), which.astype(np.int64), spread)

    def residuals(self, given: Floats, columns: Floats, own: npt.NDArray[np.int64]) -> Floats:
        """(n, d) residuals over their trusted standard deviation.

        Args:
            given: (n, c) condition.
            columns: (n, d).
            own: (n,) which trusted row each is, -1 for none.

        Raises:
            ModelError: where there are more or fewer numbers than when it was fitted.
        """
        for what, found, wanted in (("output", given, self.mean), ("signature", columns, self.target)):
            if found.shape[1] != len(wanted):
                raise ModelError(
                    f"the {what} has {found.shape[1]} numbers in one run and {len(wanted)} in another",
                    needed="a model with the same number of outputs for every input",
                )
        residual = columns - self.target - ((given - self.mean) / self.unit) @ self.weights
        left = np.where(own[:, None] >= 0, 1 - self.leverages[own][:, self.which], 1.0)
        scaled: Floats = residual / left / self.spread
        return scaled


@dataclass(frozen=True, eq=False)
class _Condition:
    """Reads the condition of inputs.

    Attributes:
        on: what it is.
        classes: (k,) sorted trusted classes, for ``class``.
        mean: (vocabulary,) of log-probabilities, where they are reduced.
        basis: (components, vocabulary) principal components, where they are reduced.
    """

    on: str | Signature
    classes: npt.NDArray[np.int64]
    mean: Floats
    basis: Floats

    @classmethod
    def fit(cls, on: str | Signature, model: OpenModel, trusted: Inputs) -> _Condition:
        classes, mean, basis = np.empty(0, np.int64), np.empty(0), np.empty((0, 0))
        if on == "class":
            classes = np.unique(predicted(model, trusted))
        if on == "logits":
            logs = _log_probabilities(model, trusted)
            if logs.shape[1] > _WIDEST:
                mean = logs.mean(0)
                _, _, right = np.linalg.svd(logs - mean, full_matrices=False)
                basis = np.ascontiguousarray(right[:_WIDEST])
        return cls(on, classes, mean, basis)

    def __call__(self, model: OpenModel, inputs: Inputs, parts: tuple[FittedSignature, ...]) -> Floats:
        """(n, c) condition."""
        if parts:
            return _values(parts[0], inputs)
        if self.on == "class":
            known: Floats = (predicted(model, inputs)[:, None] == self.classes).astype(np.float64)
            return known
        if self.on == "margin":
            return table(model, inputs, 2, lambda batch: confidence(model.logits(batch))[:, 2:])
        if not len(self.mean):
            return _log_probabilities(model, inputs)
        mean, basis = torch.from_numpy(self.mean), torch.from_numpy(self.basis)
        # Batch by batch: all log-probabilities of a large vocabulary would be too much to hold.
        return table(model, inputs, len(basis), lambda batch: (_centred(model, batch).cpu() - mean) @ basis.T)


def _log_probabilities(model: OpenModel, inputs: Inputs) -> Floats:
    """(n, classes) log-probabilities, centred over the classes."""
    (first,) = model.batches(inputs[:1])
    return table(model, inputs, model.logits(first).shape[1], lambda batch: _centred(model, batch))


def _centred(model: OpenModel, batch: Batch) -> Tensor:
    logs = log_softmax(model.logits(batch).double(), -1)
    return logs - logs.mean(-1, keepdim=True)


def _values(signature: FittedSignature, inputs: Inputs) -> Floats:
    return signature(inputs).values.astype(np.float64)
