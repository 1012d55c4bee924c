"""Detectors as text: ``signature+reference``, each part with its options in square brackets."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from causalmad.calibration import Conformal
from causalmad.config import parse_spec, split_outside, to_config
from causalmad.detector import Detector
from causalmad.detectors import spelled_out
from causalmad.errors import CausalmadError, SpecError

_PARTS = ("signatures", "references", "calibrators")
_NESTED = ("signature", "signatures", "on")  # options that hold signatures


def parse_detector(text: str) -> Detector:
    """The detector that ``signature+reference``, ``signature+reference+calibrator`` or a ready-made name stands for.

    Args:
        text: for example ``attribution-patching[units=blocks]+mahalanobis``; without a third part the calibrator is
            ``conformal``. A reference may also be one of scikit-learn's, such as ``isolation-forest``. A single word is
            a name of :data:`causalmad.detectors.DETECTORS`, or ``recommended``.

    Raises:
        SpecError: on another number of parts, or an unknown name or option (with the nearest three).
    """
    parts = [part.strip() for part in split_outside(spelled_out(text), "+")]
    if len(parts) not in (2, 3) or not all(parts):
        raise SpecError(
            f"{text!r} is no detector",
            needed="signature+reference, or signature+reference+calibrator",
            tries=[f"{parts[0] or 'activations'}+mahalanobis", "causalmad list"],
        )
    return Detector(*(parse_spec(kind, part) for kind, part in zip(_PARTS, parts)))


def with_hypothesis(detector: Detector, hypothesis: object | None, *, asked: bool = False) -> Detector:
    """The detector with a hypothesis where its signature, or one inside it, has none.

    Args:
        detector: stays as it is when its signature takes no hypothesis, or has one.
        hypothesis: a task's own, or the one that was asked for; None changes nothing.
        asked: whether it was asked for: then a signature that takes a circuit gets it as well, and one that takes
            neither is an error.

    Raises:
        SpecError: when a hypothesis was asked for and the signature takes none.
    """
    if hypothesis is None:
        return detector
    signature: Any = detector.signature
    claimed, taken = _claimed(signature, hypothesis, asked)
    if asked and not taken:
        raise SpecError(
            f"{type(signature).__name__} takes no hypothesis",
            tries=["causal-scrubbing+mahalanobis", "interchange+mahalanobis", "sufficiency+mahalanobis"],
        )
    return detector if claimed is signature else replace(detector, signature=claimed)


def _claimed(signature: Any, hypothesis: object, asked: bool) -> tuple[Any, bool]:
    """A signature with a hypothesis in it, or in the signatures inside it, and whether any of them takes one."""
    if isinstance(signature, tuple):
        pairs = [_claimed(part, hypothesis, asked) for part in signature]
        same = all(new is old for (new, _), old in zip(pairs, signature))
        return (signature if same else tuple(new for new, _ in pairs)), any(taken for _, taken in pairs)
    if not is_dataclass(signature) or isinstance(signature, type):
        return signature, False
    options = {field.name: getattr(signature, field.name) for field in fields(signature) if field.init}
    for name in ("hypothesis", "circuit") if asked else ("hypothesis",):
        if name in options:
            keep = options[name] is not None and not asked
            return (signature if keep else replace(signature, **{name: hypothesis})), True
    inner = {name: _claimed(value, hypothesis, asked) for name, value in options.items() if name in _NESTED}
    changed = {name: new for name, (new, _) in inner.items() if new is not options[name]}
    return (replace(signature, **changed) if changed else signature), any(taken for _, taken in inner.values())


def detector_text(detector: Detector) -> str:
    """A detector as :func:`parse_detector` reads it; options at their defaults are left out.

    A part that is in no catalogue stands as the name of its class, which cannot be read back.
    """
    parts: list[Any] = [detector.signature, detector.reference]
    if detector.calibrator != Conformal():
        parts.append(detector.calibrator)
    return "+".join(spec_text(kind, part) for kind, part in zip(_PARTS, parts))


def spec_text(kind: str, spec: object) -> str:
    """A part of the catalogue as it is written on the command line: its name, and the options that are not usual.

    A part that is in no catalogue stands as the name of its class.

    Args:
        kind: ``signatures``, ``references``, ``calibrators``, ``targets`` or ``tasks``.
        spec: the part.
    """
    try:
        config = to_config(kind, spec)
        usual = to_config(kind, parse_spec(kind, config["name"]))
    except CausalmadError:
        return type(spec).__name__
    return _written(config, usual["options"])


def _written(config: dict[str, Any], usual: dict[str, Any]) -> str:
    changed = {key: value for key, value in config.get("options", {}).items() if usual.get(key) != value}
    inside = ",".join(f"{key}={_value(value)}" for key, value in changed.items())
    return f"{config['name']}[{inside}]" if inside else str(config["name"])


def _usual(config: dict[str, Any]) -> dict[str, Any]:
    """The options that a part inside another has when only its name is given."""
    try:
        found = to_config(config["kind"], parse_spec(config["kind"], config["name"]))["options"]
    except (CausalmadError, TypeError):  # a hypothesis, or a part that cannot be made from its name alone
        return {}
    return dict(found)


def _value(value: Any) -> str:
    """An option's value from JSON data."""
    if isinstance(value, dict):
        return _written(value, _usual(value))
    if isinstance(value, list):
        return ";".join(map(_value, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
