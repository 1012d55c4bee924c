"""Detectors by name: every method of the field in its correct form, and ours, as one line of text each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from causalmad.detector import Detector
from causalmad.errors import SpecError, nearest
from causalmad.names import parse_detector

DETECTORS: Mapping[str, str] = MappingProxyType(
    {
        # The baseline of the field, one- and two-sided.
        "activations": "activations+mahalanobis",
        "activations-two-sided": "activations+mahalanobis[two_sided=true]",
        # Attributions and profiles of what an output depends on.
        "attribution-patching": "attribution-patching+mahalanobis",
        "resampling-profile": "resampling-profile+mahalanobis",
        "sufficiency": "sufficiency+mahalanobis",
    }
)


def detector(name: str) -> Detector:
    """The detector of that name.

    Raises:
        SpecError: when there is none, with the nearest three.
    """
    if name not in DETECTORS:
        raise SpecError(f"no detector is called {name!r}", tries=nearest(name, list(DETECTORS)))
    return parse_detector(DETECTORS[name])
