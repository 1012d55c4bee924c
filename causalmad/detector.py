"""Detector: the one joint of signature, reference and calibrator."""

from __future__ import annotations

import copy
import inspect
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.calibration import Conformal
from causalmad.calibration.base import FittedCalibrator
from causalmad.detection import Detection
from causalmad.errors import FitError, InputsError, SpecError
from causalmad.explanation import Explanation, explain
from causalmad.inputs import Inputs
from causalmad.models import OpenModel, open_model
from causalmad.references import Mahalanobis
from causalmad.references.base import FittedReference
from causalmad.references.estimators import fit_reference
from causalmad.repair import Repair, repair
from causalmad.signatures.base import FittedSignature, Signature, Signatures

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Detector:
    """A detector of mechanistic anomalies, not yet fitted.

    Args:
        signature: how an output came about, as one row of numbers per input.
        reference: what is normal: a part of ``causalmad.references``, or any scikit-learn outlier estimator with
            ``score_samples``.
        calibrator: from scores to p-values.
        calibration_share: share of the trusted inputs that is held out from signature and reference for calibration; by
            default a third, and up to a half while that third would be fewer than 100 (alpha = 0.01 takes 99).

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
        if self.calibration_share is not None and not 0 < self.calibration_share < 1:
            raise SpecError(f"calibration_share={self.calibration_share}", needed="a share between 0 and 1")
        for name in ("signature", "calibrator"):
            part = getattr(self, name)
            if isinstance(part, type) or not hasattr(part, "fit"):
                raise SpecError(
                    f"{name}={part!r} has no fit", tries=[f"an object of causalmad.{name}s, with its brackets"]
                )

    def fit(self, model: Any, trusted: Any, untrusted: Any = None, *, seed: int = 0) -> FittedDetector:
        """The detector fitted on trusted inputs.

        The trusted inputs are split into two parts that share no content: one for the signature and the reference
        (without the signature's own donors), one for calibration.

        Args:
            model: whatever :func:`causalmad.open_model` takes.
            trusted: inputs on which the model's behaviour is normal by assumption; whatever :meth:`Inputs.of` takes.
            untrusted: unlabelled inputs, for references that compare with them.
            seed: decides the split, the donors and whatever else is drawn.

        Raises:
            FitError: when there are too few trusted inputs, or their signatures cannot be fitted.
        """
        opened = open_model(model)
        inputs = opened.inputs(trusted)
        fit_rows, calibration_rows = _split(inputs, self.calibration_share, seed)
        signature = self.signature.fit(opened, inputs[fit_rows], seed)
        donors = _donor_digests(signature)
        reference_rows = np.array([row for row in fit_rows if inputs.digests[row] not in donors], dtype=np.int64)
        normal = signature(inputs[reference_rows])
        pool, others = None, inputs[:0]
        if untrusted is not None and self._compares:
            others = opened.inputs(untrusted)
            pool = signature(others).values
        reference = self._fit_reference(normal.values, pool, seed)
        held_out = signature(inputs[calibration_rows])
        calibrator = self.calibrator.fit(_scores(reference, held_out))
        parts = {
            "signature": _ids(inputs, fit_rows),
            "reference": _ids(inputs, reference_rows),
            "calibration": _ids(inputs, calibration_rows),
        }
        provenance = {"seed": seed, "ids": parts, "versions": versions(), "model": opened.name}
        # A p-value compares with inputs that the fit has not seen: nothing that it has seen has one that means much.
        seen = frozenset(inputs.digests) | (frozenset() if pool is None else frozenset(others.digests))
        return FittedDetector(self, opened, signature, reference, calibrator, normal, seen, provenance)

    @property
    def _compares(self) -> bool:
        """Whether the reference takes untrusted inputs; the others have no use for them."""
        fit = getattr(self.reference, "fit", None)
        return fit is not None and "untrusted" in inspect.signature(fit).parameters

    def _fit_reference(self, values: npt.NDArray[np.float32], pool: Any, seed: int) -> FittedReference:
        if pool is not None:
            fitted: FittedReference = copy.deepcopy(self.reference).fit(values, untrusted=pool)
            return fitted
        return fit_reference(self.reference, values, seed=seed)


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
        provenance: seed, ids of every part of the trusted inputs, versions.
    """

    spec: Detector
    model: OpenModel
    signature: FittedSignature
    reference: FittedReference
    calibrator: FittedCalibrator
    trusted: Signatures
    seen: frozenset[str]
    provenance: Mapping[str, Any]

    def __repr__(self) -> str:
        """What was fitted, in a line."""
        sizes = {name: len(ids) for name, ids in self.provenance["ids"].items()}
        return (
            f"FittedDetector({self.spec.signature!r}, {self.spec.reference!r}, on {self.model.name}: "
            f"{sizes['reference']} inputs for what is normal, {sizes['calibration']} for p-values)"
        )

    def score(self, inputs: Any) -> Floats:
        """(n,) anomaly scores, higher = more anomalous, in the reference's unit."""
        return _scores(self.reference, self.signature(self.model.inputs(inputs)))

    def detect(self, inputs: Any, alpha: float = 0.05) -> Detection:
        """Scores, p-values and flags.

        Args:
            inputs: whatever :meth:`Inputs.of` takes; they should not be among the trusted ones.
            alpha: largest share of normal inputs that may be flagged, on average over calibration sets.

        Raises:
            CalibrationError: when the calibration inputs are too few for ``alpha``.
        """
        self.calibrator.require(alpha)
        known = self.model.inputs(inputs)
        found = self.signature(known)
        scores = _scores(self.reference, found)
        p_values = self.calibrator.p_values(scores)
        repeated = tuple(key for key, content in zip(known.ids, known.digests, strict=True) if content in self.seen)
        provenance = {**self.provenance, "also trusted": repeated}
        return Detection(
            found, scores, p_values, alpha, provenance, lambda row: self._explain(found, scores, row, known)
        )

    def explain(self, inputs: Any) -> tuple[Explanation, ...]:
        """Why each input scored as it did; :meth:`Detection.explain` does the same for one input of a detection."""
        known = self.model.inputs(inputs)
        found = self.signature(known)
        scores = _scores(self.reference, found)
        return tuple(self._explain(found, scores, row, known) for row in range(len(found)))

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
            StoreError: when a part cannot be written, or the directory holds something else.
        """
        from causalmad.store import save

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
                that differs is named).
            HypothesisError: when the functions of a hypothesis are missing, or ``hypothesis`` is not the saved one.
        """
        from causalmad.store import load

        return load(Path(path), model, hypothesis)

    def _explain(self, found: Signatures, scores: Floats, row: int, inputs: Inputs) -> Explanation:
        p_value = float(self.calibrator.p_values(scores[row : row + 1])[0])
        chosen = getattr(self.signature, "donors_of", None)  # signatures that choose donors for every input
        donors = None if chosen is None else chosen(inputs[row])
        key, values, score = found.ids[row], found.values[row], float(scores[row])
        return explain(key, found.columns, values, score, p_value, self.reference, self.trusted, donors=donors)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    known = {"python": platform.python_version()}
    for name in ("causalmad", "torch", "numpy", "scikit-learn", "transformers", "nnsight"):
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            continue
    return known


def _scores(reference: FittedReference, found: Signatures) -> Floats:
    """Anomaly scores: the one place where scikit-learn's sign (higher = more normal) is turned round."""
    return -np.asarray(reference.score_samples(found.values), dtype=np.float64)


def _split(inputs: Inputs, share: float | None, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows for fitting and rows for calibration; inputs of equal content are on the same side."""
    contents = np.array(inputs.digests)
    distinct = np.unique(contents)
    total = len(distinct)
    count = max(total // 3, min(100, total // 2), 1) if share is None else max(round(share * total), 1)
    if total - count < 3:
        raise FitError(
            f"{total} distinct trusted inputs, {count} of them for calibration",
            needed="at least 3 for the signature and the reference, and for alpha = 0.05 at least 19 for calibration",
            tries=["more trusted inputs", "a smaller Detector(..., calibration_share=...)"],
        )
    # Sorted contents, then a seeded shuffle: the split does not depend on the order in which inputs came.
    held = np.random.default_rng([seed, 7]).permutation(distinct)[:count]
    inside = np.isin(contents, held)
    return np.flatnonzero(~inside), np.flatnonzero(inside)


def _donor_digests(signature: FittedSignature) -> frozenset[str]:
    """Contents of the inputs that the signature uses as donors; they don't describe what is normal."""
    return frozenset(getattr(signature, "donor_digests", ()))


def _ids(inputs: Inputs, rows: npt.NDArray[np.int64]) -> list[str]:
    return [inputs.ids[row] for row in rows]
