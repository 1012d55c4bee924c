"""Refusals: what no detector can be made of or fitted with, told before any work."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

from causalmad.config import require_options
from causalmad.errors import SpecError

if TYPE_CHECKING:
    from causalmad.detector import Detector


def require_use(detector: Detector, untrusted: object | None) -> None:
    """Nothing, where untrusted inputs are looked at, or there are none.

    Raises:
        SpecError: where there are some, and neither reference nor calibrator looks at them.
    """
    if untrusted is not None and not detector.compares:
        names = " nor ".join(type(part).__name__ for part in (detector.reference, detector.calibrator))
        raise SpecError(
            f"untrusted inputs (a {type(untrusted).__name__}), at which neither {names} looks",
            needed="none with this detector",
            causes=[
                "labels, as scikit-learn's fit(X, y) takes them: no detector sees any",
                "another reference was meant",
            ],
            tries=["detector.fit(model, trusted)", "reference=causalmad.references.QuantumEntropy()"],
        )


def require_parts(detector: Detector) -> None:
    """Nothing, where a detector's parts are what stands in their places, and its options of their kinds.

    Raises:
        SpecError: otherwise, with the part or option.
    """
    share: Any = detector.calibration_share
    if share is not None and not (isinstance(share, (int, float, np.floating)) and 0 < share < 1):
        raise SpecError(f"calibration_share={share!r}", needed="a share between 0 and 1")
    for name, folder in (("signature", "signatures"), ("calibrator", "calibration")):
        part = getattr(detector, name)
        if isinstance(part, type) or not hasattr(part, "fit"):
            raise SpecError(
                f"{name}={part!r} has no fit", tries=[f"an object of causalmad.{folder}, with its brackets"]
            )
    _require_signature(detector.signature)
    for each in (detector.signature, detector.reference, detector.calibrator):
        require_options(each)


def _require_signature(part: Any) -> None:
    """What stands in the signature's place can be called as one."""
    try:
        if hasattr(part, "score_samples"):  # scikit-learn's fit(X, y, sample_weight) looks like a signature's
            raise TypeError
        inspect.signature(part.fit).bind(None, None, 0)
    except TypeError:
        raise SpecError(
            f"signature={part!r}, whose fit{inspect.signature(part.fit)} takes no (model, trusted, seed)",
            needed="a signature: it looks at a model on inputs",
            causes=["a reference or a calibrator in the signature's place"],
            tries=["Detector(signature, reference, calibrator)", "Detector(causalmad.signatures.Activations())"],
        ) from None
    except ValueError:  # a fit whose arguments Python cannot see
        return


def require_fitted(signature: Any, spec: Any) -> None:
    """Nothing, where what a signature's fit returned can be called for signatures.

    Args:
        signature: what it returned.
        spec: whose fit it was.

    Raises:
        SpecError: otherwise.
    """
    if not callable(signature) or not hasattr(signature, "columns"):
        raise SpecError(
            f"{type(spec).__name__}.fit gave a {type(signature).__name__}",
            needed="a fitted signature: `columns`, and a call from inputs to causalmad.signatures.Signatures",
            causes=["no return", "a plain function"],
            tries=["docs/how-to/add-a-signature.md", "causalmad check my_package.my_module:MySignature"],
        )
