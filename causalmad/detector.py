"""Detector: the one joint of signature, reference and calibrator."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.calibration import Conformal
from causalmad.calibration.base import FittedCalibrator
from causalmad.calibration.multiple import adjusted, fewest
from causalmad.calibration.repeats import FittedRepeats
from causalmad.covariates import covariates, predicted_classes
from causalmad.detection import Detection
from causalmad.errors import FitError, InputsError, blaming
from causalmad.explanation import Explanation, explain
from causalmad.extraction.cache import Keeps
from causalmad.extraction.cache import opened as opened_cache
from causalmad.extraction.extract import rows_of
from causalmad.fitting import donor_digests, fit_on, scores_of
from causalmad.inputs import Inputs
from causalmad.models import OpenModel, open_model
from causalmad.models.batching import within_memory
from causalmad.models.fingerprint import glance, require_glance
from causalmad.plots.tables import facts
from causalmad.provenance import versions
from causalmad.references import Mahalanobis
from causalmad.references.base import FittedReference
from causalmad.references.estimators import asks, compares, require_untrusted
from causalmad.references.folded import NO_FOLD, FittedFolds
from causalmad.refusals import require_fitted, require_parts, require_use
from causalmad.repair import Repair, repair
from causalmad.signatures.base import FittedSignature, Signature, Signatures
from causalmad.splits import as_seed, by_content, folds_of, split, with_copies

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Detector:
    """A detector of mechanistic anomalies, not yet fitted.

    Args:
        signature: how an output came about, as one row of numbers per input.
        reference: what is normal: a part of ``causalmad.references``, or any scikit-learn outlier estimator with
            ``score_samples``.
        calibrator: from scores to p-values: a part of ``causalmad.calibration`` (``Conformal``, ``Mondrian``,
            ``CalibrationConditional``, ``Weighted``, ``CrossConformal``).
        calibration_share: share of the trusted inputs that is held out from signature and reference for calibration; by
            default a third, and up to a half while that third would be fewer than 100 (alpha = 0.01 takes 99). With a
            cross-conformal calibrator it is held out from the signature alone, and by default two thirds.

    Example:
        >>> import torch, causalmad as cm
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> data = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
        >>> fitted = cm.Detector(cm.signatures.Activations()).fit(model, data[:60])
        >>> fitted.detect(data[60:], alpha=0.1).flags.shape
        (20,)
    """

    signature: Signature
    reference: Any = field(default_factory=Mahalanobis)
    calibrator: Any = field(default_factory=Conformal)
    calibration_share: float | None = None

    def __post_init__(self) -> None:
        require_parts(self)

    @property
    def compares(self) -> bool:
        """Whether the reference or the calibrator looks at untrusted inputs."""
        return compares(self.reference) or "untrusted" in _parameters(self.calibrator.fit)

    def fit(
        self, model: Any, trusted: Any, untrusted: Any = None, *, seed: int = 0, cache: Keeps = None
    ) -> FittedDetector:
        """The detector fitted on trusted inputs.

        The trusted inputs are split into two parts that share no content: one for the signature and the reference
        (without the signature's own donors), one for calibration. In what order they come plays no part. Where contents
        repeat among the calibration inputs, a p-value is the larger one of two, see
        :class:`causalmad.calibration.repeats.FittedRepeats`.

        Args:
            model: whatever :func:`causalmad.open_model` takes.
            trusted: inputs on which the model's behaviour is normal by assumption; whatever :meth:`Inputs.of` takes.
            untrusted: unlabelled inputs, for references that compare with them and calibrators that weigh by them
                (:attr:`compares` says whether there is one); never labels.
            seed: decides the split, the donors and whatever else is drawn: a whole number, 0 or larger.
            cache: a folder that keeps signatures, see :func:`causalmad.extract`. What the signature itself learns from
                the trusted inputs is learned anew.

        Raises:
            CacheError: when the cache cannot be used.
            FitError: when there are too few trusted inputs, or their signatures cannot be fitted.
            SpecError: when there are untrusted inputs and nothing here looks at them, the seed is no whole number, or
                the signature gives something else than signatures.
        """
        seed = as_seed(seed)
        require_use(self, untrusted)
        opened = open_model(model)
        inputs = opened.inputs(trusted)
        require_untrusted(self.reference, untrusted)
        needed = set(_parameters(self.calibrator.fit))
        if "untrusted" in needed and untrusted is None:
            raise FitError(
                f"{type(self.calibrator).__name__} weighs by how untrusted inputs differ, and there are none",
                needed="unlabelled inputs like those to come",
                tries=[
                    "detector.fit(model, trusted, untrusted)",
                    "--untrusted FILE.jsonl",
                    "calibrator=causalmad.calibration.Conformal()",
                ],
            )
        share = self.calibration_share
        if share is None and "folds" in needed:
            share = 2 / 3
        fit_rows, calibration_rows = split(inputs, share, seed)
        signature = within_memory(opened, lambda: self.signature.fit(opened, inputs[fit_rows], seed))
        require_fitted(signature, self.signature)
        rows = partial(rows_of, signature, self.signature, opened, opened_cache(cache))
        donors = donor_digests(signature)
        reference_rows = np.array([row for row in fit_rows if inputs.digests[row] not in donors], dtype=np.int64)
        held = inputs[calibration_rows]
        compared = untrusted is not None and compares(self.reference)
        others = None if untrusted is None else opened.inputs(untrusted)
        others = None if others is None else others[by_content(others)]
        context: dict[str, npt.NDArray[Any]] = {}
        folds = folds_of(held, int(self.calibrator.folds), seed) if "folds" in needed else None
        if folds is not None:
            context["folds"] = np.concatenate([np.full(len(reference_rows), NO_FOLD), folds])
            reference_rows = np.concatenate([reference_rows, calibration_rows])
        normal = rows(inputs[reference_rows])
        if others is not None and compared:
            context["untrusted"] = rows(others).values
        if "classes" in asks(self.reference):
            context["classes"] = predicted_classes(opened, inputs[reference_rows])
        reference = fit_on(self.reference, normal, context, seed)
        given: dict[str, Any] = {}
        names = getattr(self.calibrator, "asks", ())
        if "covariates" in needed:
            given["covariates"] = covariates(names, opened, held)
        if "untrusted" in needed and others is not None:
            given["untrusted"] = covariates(names, opened, others)
        if folds is None:
            scores = scores_of(reference, rows(held))
        else:
            # The signatures of the held-out inputs are the last rows of `normal`; each is scored without its own fold.
            given["folds"] = folds
            own = Signatures(normal.ids[-len(folds) :], normal.columns, normal.values[-len(folds) :])
            scores = scores_of(reference, own, each=True)[np.arange(len(folds)), folds]
        calibrator = self.calibrator.fit(scores, **given)
        # A p-value compares with inputs that the fit has not seen: nothing that it has seen has one that means much.
        seen = frozenset(inputs.digests)
        every, place = (calibration_rows,) * 2 if len(seen) == len(inputs) else with_copies(inputs, calibration_rows)
        if len(every) > len(scores):
            if "covariates" in given:
                given["covariates"] = covariates(names, opened, inputs[every])
            if folds is not None:
                given["folds"] = folds[place]
            calibrator = FittedRepeats(calibrator, self.calibrator.fit(scores[place], **given))
        chosen = {"signature": fit_rows, "reference": reference_rows, "calibration": calibration_rows}
        parts = {name: [inputs.ids[row] for row in which] for name, which in chosen.items()}
        provenance = {"seed": seed, "ids": parts, "versions": versions(), "model": opened.name}
        pool = frozenset(others.digests) if others is not None and compared else frozenset()
        return FittedDetector(
            self,
            opened,
            signature,
            reference,
            calibrator,
            normal,
            seen,
            provenance,
            pool=pool,
            context=context,
            weights=glance(opened.module),
        )


@dataclass(frozen=True, eq=False, repr=False)
class FittedDetector:
    """A detector on one model.

    Attributes:
        spec: what was fitted.
        model: the opened model.
        signature: the fitted signature.
        reference: the fitted reference.
        calibrator: the fitted calibrator.
        trusted: signatures of the trusted inputs on which the reference stands.
        seen: content hashes of all trusted inputs, with which nothing new should be compared to itself.
        provenance: seed, ids of every part of the trusted inputs (for calibration one of each content), versions.
        pool: content hashes of the untrusted inputs that the reference was fitted on.
        context: what else the reference was fitted with: ``untrusted`` (m, d) signatures, and of every trusted row its
            predicted class (``classes``) and fold (``folds``).
        origin: the folder that it was loaded from: whatever fails is then blamed on that.
        weights: a :func:`causalmad.models.fingerprint.glance` at the model's; empty where nobody looks.
    """

    spec: Detector
    model: OpenModel
    signature: FittedSignature
    reference: FittedReference
    calibrator: FittedCalibrator
    trusted: Signatures
    seen: frozenset[str]
    provenance: Mapping[str, Any]
    pool: frozenset[str] = frozenset()
    context: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    origin: str = ""
    weights: str = ""

    def __repr__(self) -> str:
        """What was fitted, in a line."""
        sizes = {name: len(ids) for name, ids in self.provenance["ids"].items()}
        return (
            f"FittedDetector({self.spec.signature!r}, {self.spec.reference!r}, on {self.model.name}: "
            f"{sizes['reference']} inputs for what is normal, {sizes['calibration']} for p-values)"
        )

    def _repr_html_(self) -> str:
        """What was fitted, as a table for notebooks."""
        parts = {name: getattr(self.spec, name) for name in ("signature", "reference", "calibrator")}
        sizes = {f"{name} inputs": len(ids) for name, ids in self.provenance["ids"].items()}
        return facts(f"FittedDetector on {self.model.name}", {**parts, **sizes}.items())

    def score(self, inputs: Any, *, cache: Keeps = None) -> Floats:
        """(n,) anomaly scores, higher = more anomalous, in the reference's unit.

        Args:
            inputs: whatever :meth:`Inputs.of` takes.
            cache: a folder that keeps signatures, see :func:`causalmad.extract`.
        """
        with blaming(self.origin):
            return scores_of(self.reference, self.signatures(self.model.inputs(inputs), cache))

    def measure(self, found: Signatures, inputs: Inputs) -> tuple[Floats, Floats]:
        """(n,) anomaly scores and (n,) p-values of signatures.

        Args:
            found: the signatures, one row for each input.
            inputs: whose they are; calibrators that compare like with like look up the class, length or column here.
        """
        with blaming(self.origin):
            scores = scores_of(self.reference, found)
            compared = scores_of(self.reference, found, each=True) if self._folded else scores
            return scores, self.calibrator.p_values(compared, **self.compared_by(inputs))

    def detect(self, inputs: Any, alpha: float = 0.05, *, fdr: str | None = None, cache: Keeps = None) -> Detection:
        """Scores, p-values and flags.

        Args:
            inputs: whatever :meth:`Inputs.of` takes; they should not be among the trusted ones.
            alpha: largest share of normal inputs that may be flagged, on average over calibration sets; with ``fdr``
                the largest expected share of false flags among all flags.
            fdr: ``bh``, ``by``, ``storey`` or ``e-bh``, see :func:`causalmad.calibration.multiple.reject`.
            cache: a folder that keeps signatures, see :func:`causalmad.extract`.

        Raises:
            CacheError: when the cache cannot be used.
            CalibrationError: when the calibration inputs are too few for ``alpha``, or there is no such ``fdr``.
        """
        self.calibrator.require(alpha)
        known = self.model.inputs(inputs)
        adjusted_p = None if fdr is None else adjusted(np.ones(0), fdr)  # a wrong name before any work
        found = self.signatures(known, cache)
        scores, p_values = self.measure(found, known)
        note = ""
        if fdr is not None:
            adjusted_p = adjusted(p_values, fdr)
            note = _reach(fewest(self._floors(known), alpha, fdr), len(known), alpha)
        pairs = list(zip(known.ids, known.digests, strict=True))
        provenance = {
            **self.provenance,
            "also trusted": tuple(key for key, content in pairs if content in self.seen),
            "also untrusted": tuple(key for key, content in pairs if content in self.pool),
        }

        reason = partial(self._explain, found, scores, p_values, inputs=known)
        return Detection(found, scores, p_values, alpha, provenance, reason, fdr, adjusted_p, note, self.calibrator)

    def explain(self, inputs: Any) -> tuple[Explanation, ...]:
        """Why each input scored as it did; :meth:`Detection.explain` does the same for one input of a detection."""
        known = self.model.inputs(inputs)
        found = self.signatures(known)
        scores, p_values = self.measure(found, known)
        return tuple(self._explain(found, scores, p_values, row, known) for row in range(len(found)))

    def repair(
        self, inputs: Any, trusted: Any, *, alpha: float = 0.05, units: Any = None, most: int = 3, donors: int = 4
    ) -> Repair:
        """The fewest places whose replacement from a trusted donor brings an input's p-value above ``alpha``.

        Args:
            inputs: one input, for example ``test[17]``.
            trusted: trusted inputs to draw the donors from.
            alpha: the p-value to exceed.
            units: ``blocks``, ``positions``, ``heads``, ``mlps``, ...; by default those of the signature.
            most: the most places to replace.
            donors: how many donors are tried.

        Raises:
            InputsError: when there is not exactly one input.
        """
        known = self.model.inputs(inputs)
        if len(known) != 1:
            raise InputsError(f"{len(known)} inputs to repair", needed="one", tries=["inputs[17]"])
        return repair(self, known, self.model.inputs(trusted), alpha=alpha, units=units, most=most, donors=donors)

    def save(self, path: str | Path) -> None:
        """Write the detector to a directory: ``detector.json`` and ``state.safetensors``; the model stays outside.

        Raises:
            ModelError: when the model's weights are others than when it was fitted.
            StoreError: when a part cannot be written, or the directory holds something else.
        """
        from causalmad.store import save

        require_glance(self.model.module, self.weights)
        save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, model: Any, hypothesis: Any = None) -> FittedDetector:
        """The detector that :meth:`save` wrote, on the same model.

        Args:
            path: the folder.
            model: whatever :func:`causalmad.open_model` takes.
            hypothesis: the hypothesis that the signature tests, where its functions are your own: a file has only their
                names, and never makes Python import what it names.

        Raises:
            StoreError: when the files are damaged, of another schema, or made on another model (the first parameter
                or computed buffer that differs is named).
            HypothesisError: when the functions of a hypothesis are missing, or ``hypothesis`` is not the saved one.
        """
        from causalmad.store import load

        return load(Path(path), model, hypothesis)

    def signatures(self, inputs: Inputs, cache: Keeps = None) -> Signatures:
        """(n, d) signatures of inputs of the model.

        Args:
            inputs: the inputs.
            cache: a folder that keeps signatures, see :func:`causalmad.extract`.

        Raises:
            ModelError: when the model's weights are others than when the detector was fitted.
        """
        require_glance(self.model.module, self.weights)
        with blaming(self.origin):
            return rows_of(self.signature, self.spec.signature, self.model, cache, inputs)

    @property
    def _folded(self) -> bool:
        return isinstance(self.reference, FittedFolds)

    def compared_by(self, inputs: Inputs) -> dict[str, Any]:
        """What the calibrator takes beside scores: ``covariates``, or nothing."""
        one = self.calibrator.contents if isinstance(self.calibrator, FittedRepeats) else self.calibrator
        if "covariates" not in _parameters(one.p_values):
            return {}
        return {"covariates": covariates(getattr(self.spec.calibrator, "asks", ()), self.model, inputs)}

    def _floors(self, inputs: Inputs) -> Floats:
        """(n,) the smallest p-value that each input could get."""
        shape = (len(inputs), len(self.reference.members)) if isinstance(self.reference, FittedFolds) else len(inputs)
        return self.calibrator.p_values(np.full(shape, np.inf), **self.compared_by(inputs))

    def _explain(self, found: Signatures, scores: Floats, p_values: Floats, row: int, inputs: Inputs) -> Explanation:
        chosen = getattr(self.signature, "donors_of", None)  # signatures that choose donors for every input
        key, values, score, p_value = found.ids[row], found.values[row], float(scores[row]), float(p_values[row])
        with blaming(self.origin):
            donors = None if chosen is None else chosen(inputs[row])
            return explain(key, found.columns, values, score, p_value, self.reference, self.trusted, donors=donors)


def _reach(needed: int | None, count: int, alpha: float) -> str:
    """What the size of the calibration set means for ``count`` inputs tested at once, where it means anything."""
    if needed is None:
        return f"With so few calibration inputs, none of {count} inputs at once can be flagged at {alpha:g}, ever."
    if needed > 1:
        return (
            f"With so few calibration inputs, none of {count} inputs at once can be flagged unless at least {needed} "
            "of them score above every trusted one."
        )
    return ""


def _parameters(function: Any) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
