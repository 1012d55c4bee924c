"""Linear probes of the model's own answer, one per layer, fitted on trusted inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.errors import FitError
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.signatures.activations import Activations, FittedActivations
from causalmad.signatures.base import State
from causalmad.signatures.kept import distinct, own_rows
from causalmad.signatures.table import table
from causalmad.targets import margin

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

OTHER = -1  # the class of all answers that have no class of their own
_FOLDS = 5
_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # inverse penalties, of standardised activations


def predicted(model: OpenModel, inputs: Inputs) -> Ints:
    """(n,) the class that the model predicts."""
    return table(model, inputs, 1, lambda batch: model.logits(batch).argmax(-1)[:, None])[:, 0].astype(np.int64)


@dataclass(frozen=True, eq=False)
class Probes:
    """Multinomial logistic regressions from activations to the model's answer.

    A trusted input is read by the probes of its fold, which were fitted without it; every other input by those that
    were fitted on all: otherwise trusted inputs would look surer than new ones.

    Attributes:
        layers: reads the activations.
        classes: (classes,) the answers that the probes tell apart, ``OTHER`` (last) being all others.
        weights: per layer (folds + 1, features, classes); the last of each was fitted on all trusted inputs.
        biases: per layer (folds + 1, classes).
        digests: contents of the trusted inputs.
        folds: (trusted,) the fold of each.
    """

    layers: FittedActivations
    classes: Ints
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    digests: tuple[str, ...]
    folds: Ints

    @classmethod
    def fit(cls, model: OpenModel, trusted: Inputs, reader: Activations, most: int, seed: int) -> Probes:
        """Fit a probe at every site of ``reader``, for the ``most`` frequent answers.

        Raises:
            FitError: when the trusted inputs have fewer than two answers that occur at least twice each.
        """
        layers = reader.fit(model, trusted)
        kept = distinct(trusted, seed=seed)
        classes, labels = _labels(predicted(model, kept), most)
        known = np.flatnonzero(labels >= 0)
        if len(classes) < 2:
            raise FitError(
                f"{len(classes)} answers of the model occur at least twice among {len(kept)} distinct trusted inputs",
                needed="at least two, for a probe to tell apart",
                tries=["more trusted inputs", "Activations()"],
            )
        folds = _deal(labels, seed)
        fitted = [_probes(values[known], labels[known], folds[known], len(classes)) for values in split(layers, kept)]
        weights, biases = tuple(w for w, _ in fitted), tuple(b for _, b in fitted)
        return cls(layers, classes, weights, biases, kept.digests, folds)

    def answers(self, logits: Tensor) -> Tensor:
        """(batch,) which of the classes the model's answer is, -1 where it is none of them."""
        top = logits.argmax(-1)
        classes = torch.from_numpy(self.classes).to(top.device)
        same = top[:, None] == classes
        other = same.any(1).logical_not() & bool(classes[-1] == OTHER)
        same[:, -1] |= other
        return torch.where(same.any(1), same.long().argmax(1), -1)

    def which(self, inputs: Inputs) -> Ints:
        """(n,) the probes that read each input: of its fold, or of all."""
        own = own_rows(inputs, self.digests)
        return np.where(own >= 0, self.folds[own], self.weights[0].shape[0] - 1)

    def read(self, layer: int, values: Tensor, which: Ints) -> Tensor:
        """(batch, classes) logits of the probe at a layer, from its (batch, features) activations, in nats."""
        weights, biases = self.weights[layer].to(values), self.biases[layer].to(values)
        each = torch.einsum("nd,kdc->nkc", values, weights) + biases
        return each[torch.arange(len(values), device=values.device), torch.from_numpy(which).to(values.device)]

    def state(self) -> State:
        """The probes, and which trusted inputs they stand on."""
        tensors = {f"weights:{i}": value for i, value in enumerate(self.weights)}
        tensors |= {f"biases:{i}": value for i, value in enumerate(self.biases)}
        tensors |= {"classes": torch.from_numpy(self.classes), "folds": torch.from_numpy(self.folds)}
        return State(tensors, {"layers": dict(self.layers.state().data), "digests": list(self.digests)})

    @classmethod
    def restore(cls, model: OpenModel, state: State) -> Probes:
        """The probes that wrote ``state``."""
        layers = Activations().restore(model, State({}, state.data["layers"]))
        weights = tuple(state.tensors[f"weights:{i}"] for i in range(len(layers.sites)))
        biases = tuple(state.tensors[f"biases:{i}"] for i in range(len(layers.sites)))
        classes, folds = state.tensors["classes"].numpy(), state.tensors["folds"].numpy()
        return cls(layers, classes, weights, biases, tuple(state.data["digests"]), folds)


def log_odds(logits: Tensor, answers: Tensor) -> Tensor:
    """(batch,) log-odds of the answer against all other classes, in nats.

    An answer that is none of the classes has those of the least likely one: the probe holds it less likely still.
    """
    found = margin(logits, answers.clamp(min=0))
    if bool((answers >= 0).all()):
        return found
    return torch.where(answers >= 0, found, margin(logits, logits.argmin(-1)))


def split(layers: FittedActivations, inputs: Inputs) -> list[Floats]:
    """(n, features) activations of every site."""
    values = layers(inputs).values.astype(np.float64)
    names = np.array([column.site for column in layers.columns])
    return [values[:, names == str(site)] for site in layers.sites]


def _labels(answers: Ints, most: int) -> tuple[Ints, Ints]:
    """The classes, and (n,) which of them each answer is; -1 where a class would have one member only."""
    found, counts = np.unique(answers, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    own = np.sort(found[order][counts[order] > 1])
    rest = ~np.isin(answers, own)
    classes = np.append(own, OTHER) if rest.sum() > 1 else own
    labels = np.full(len(answers), -1)
    for i, label in enumerate(own):
        labels[answers == label] = i
    if rest.sum() > 1:
        labels[rest] = len(own)
    return classes.astype(np.int64), labels.astype(np.int64)


def _deal(labels: Ints, seed: int) -> Ints:
    """(n,) folds into which the members of every class are dealt in turn, so that each class is left in all others."""
    drawn = np.random.default_rng([seed, 5]).permutation(len(labels))
    order = drawn[np.argsort(labels[drawn], kind="stable")]
    folds = np.empty(len(labels), dtype=np.int64)
    folds[order] = np.arange(len(labels)) % min(_FOLDS, len(labels))
    return folds


def _probes(values: Floats, labels: Ints, folds: Ints, classes: int) -> tuple[Tensor, Tensor]:
    """(folds + 1, features, classes) weights and (folds + 1, classes) biases, at the penalty of smallest held-out loss.

    The loss is taken over all inputs, each by the probe that was fitted without it.
    """
    best: tuple[float, Any, float] = (np.inf, None, 0.0)
    count = int(folds.max()) + 1
    for strength in _STRENGTHS:
        found = [_logistic(values[folds != k], labels[folds != k], strength, classes) for k in range(count)]
        loss = 0.0
        for k, (weights, bias) in enumerate(found):
            held = torch.from_numpy(values[folds == k] @ weights + bias)
            loss += float(
                torch.nn.functional.cross_entropy(held, torch.from_numpy(labels[folds == k]), reduction="sum")
            )
        if loss < best[0]:
            best = (loss, found, strength)
    every: Sequence[tuple[Floats, Floats]] = [*best[1], _logistic(values, labels, best[2], classes)]
    return tuple(torch.from_numpy(np.stack(part)) for part in zip(*every))  # type: ignore[return-value]


def _logistic(values: Floats, labels: Ints, strength: float, classes: int) -> tuple[Floats, Floats]:
    """(features, classes) weights and (classes,) bias on raw activations, which are standardised in between."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(values)
    fitted = LogisticRegression(C=strength, max_iter=2000).fit(scaler.transform(values), labels)
    coefficients, bias = fitted.coef_, fitted.intercept_
    if classes == 2:  # one logit stands for two
        coefficients, bias = np.stack([-coefficients[0], coefficients[0]]) / 2, np.array([-bias[0], bias[0]]) / 2
    weights = (coefficients / scaler.scale_).T
    return weights, bias - scaler.mean_ @ weights
