"""Surface controls: how far the output, the input or the activations alone tell anomalies, without looking inside."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.detector import Detector
from causalmad.errors import CausalmadError
from causalmad.evaluation.metrics import auroc
from causalmad.inputs import Inputs
from causalmad.models import OpenModel, open_model
from causalmad.references import Mahalanobis
from causalmad.references.base import anomaly_scores
from causalmad.references.estimators import fit_reference
from causalmad.signatures import Activations
from causalmad.signatures.input_only import frequent, occurrences
from causalmad.targets import margin
from causalmad.tasks.base import TaskData

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]

WIDEST = 4096  # columns of a raw input, at most
NEIGHBOURS = 5


def control_aurocs(data: TaskData, seed: int = 0) -> dict[str, float | None]:
    """AUROC of every control on the test inputs, fitted on trusted inputs alone; None where one cannot be fitted.

    ``output-confidence`` is the negative margin of the top logit (the largest probability ranks inputs alike) and
    ``output-entropy`` the entropy of the output. ``input-mahalanobis`` and ``input-knn`` look at raw inputs: floats as
    they are; tokens as one-hot places where all sequences are of one length, otherwise as counts. ``length`` is the
    distance from the usual number of tokens, where that varies. ``activations+mahalanobis`` is the baseline detector,
    with its two-sided form for activations that are made to look too typical. The two skylines are supervised and no
    detectors: classifiers trained on the labels (a random forest on raw inputs, logistic regression on activations),
    scored on folds that they were not trained on; they say how much there is to find.

    Args:
        data: a loaded task.
        seed: of the baseline detector.
    """
    controls = _Controls(data, open_model(data.model), seed)
    found: dict[str, float | None] = {}
    for name, score in controls.scores.items():
        try:
            found[name] = auroc(data.labels, score())
        except CausalmadError as error:
            logger.warning("control %s of %s gave no score: %s", name, data.name, error)
            found[name] = None
    return found


@dataclass(frozen=True, eq=False)
class _Controls:
    data: TaskData
    model: OpenModel
    seed: int

    @property
    def scores(self) -> Mapping[str, Callable[[], Floats]]:
        """Name of a control -> its (n_test,) anomaly scores."""
        both = Mahalanobis(two_sided=True)
        known: dict[str, Callable[[], Floats]] = {
            "output-confidence": lambda: -self.outputs[0],
            "output-entropy": lambda: self.outputs[1],
            "input-mahalanobis": lambda: _distance(Mahalanobis(), *self.raw),
            "input-knn": lambda: _nearest(*self.raw),
            "activations+mahalanobis": lambda: _distance(Mahalanobis(), *self.activations),
            "activations+mahalanobis[two_sided=true]": lambda: _distance(both, *self.activations),
            "input-skyline": lambda: self.skyline(self.raw[1], "forest"),
            "activation-skyline": lambda: self.skyline(self.activations[1], "linear"),
        }
        lengths = [self.data.trusted.lengths, self.data.test.lengths]
        if self.data.test.tokens and len(np.unique(np.concatenate(lengths))) > 1:
            known["length"] = lambda: np.abs(lengths[1] - np.median(lengths[0]))
        return known

    def skyline(self, rows: Floats, kind: str) -> Floats:
        """(n_test,) out-of-fold log-odds of a classifier that was given the labels."""
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        model = RandomForestClassifier(100, random_state=self.seed) if kind == "forest" else linear
        folds = StratifiedKFold(5, shuffle=True, random_state=self.seed)
        odds = cross_val_predict(model, rows, self.data.labels, cv=folds, method="predict_proba")
        found: Floats = odds[:, 1]
        return found

    @cached_property
    def outputs(self) -> tuple[Floats, Floats]:
        """(n_test,) margins and entropies of the outputs, in nats."""
        margins, entropies = np.empty(len(self.data.test)), np.empty(len(self.data.test))
        for batch in self.model.batches(self.data.test):
            logits = self.model.logits(batch).double()
            margins[batch.rows] = margin(logits, logits.argmax(-1)).cpu().numpy()
            entropies[batch.rows] = torch.distributions.Categorical(logits=logits).entropy().cpu().numpy()
        return margins, entropies

    @cached_property
    def raw(self) -> tuple[Floats, Floats]:
        """(n, d) raw trusted and test inputs."""
        return raw_inputs(self.data.trusted, self.data.test)

    @cached_property
    def activations(self) -> tuple[Floats, Floats]:
        """(n, d) activations that the baseline's reference is fitted on, and those of the test inputs."""
        fitted = Detector(Activations()).fit(self.model, self.data.trusted, seed=self.seed)
        test = fitted.signature(self.data.test).values
        return fitted.trusted.values.astype(np.float64), test.astype(np.float64)


def raw_inputs(trusted: Inputs, test: Inputs) -> tuple[Floats, Floats]:
    """Raw inputs as rows of numbers: (n, d) trusted, (m, d) test; what a token is was learnt from trusted ones."""
    if not test.tokens:
        return _flat(trusted), _flat(test)
    words = frequent(trusted, WIDEST - 1)
    lengths = np.unique(np.concatenate([trusted.lengths, test.lengths]))
    places = int(lengths[0]) if len(lengths) == 1 and lengths[0] * (len(words) + 1) <= WIDEST else 0
    known, new = (occurrences(inputs, words, places) for inputs in (trusted, test))
    return known.reshape(len(trusted), -1), new.reshape(len(test), -1)


def _flat(inputs: Inputs) -> Floats:
    fields = [rows for rows in inputs.fields.values() if isinstance(rows, Tensor)]
    whole: Floats = torch.cat([rows.reshape(len(inputs), -1).double() for rows in fields], 1).numpy()
    return whole


def _distance(reference: Mahalanobis, trusted: Floats, test: Floats) -> Floats:
    scores: Floats = anomaly_scores(fit_reference(reference, trusted).score_samples, test)
    return scores


def _nearest(trusted: Floats, test: Floats) -> Floats:
    """(m,) mean distance to the nearest trusted rows, columns in trusted standard deviations."""
    from sklearn.neighbors import NearestNeighbors

    spread = trusted.std(0)
    unit = np.where(spread > 1e-8, spread, 1.0)
    search = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(trusted))).fit(trusted / unit)
    distances: Floats = search.kneighbors(test / unit)[0].mean(1)
    return distances
