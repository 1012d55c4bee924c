"""Detectors by name, wherever the command line takes one."""

from __future__ import annotations

from collections.abc import Mapping

from causalmad.config import split_outside
from causalmad.errors import SpecError, nearest


def detectors() -> Mapping[str, str]:
    """Name of a ready-made detector -> its text; ``recommended`` is the first of them."""
    from causalmad.detectors import DETECTORS, RECOMMENDED

    return {"recommended": DETECTORS[RECOMMENDED], **DETECTORS}


def detector_text(text: str) -> str:
    """A detector as ``parse_detector`` reads it: what a ready-made one stands for, or the text itself.

    Raises:
        SpecError: when it is a single word and no detector's name, with the nearest three.
    """
    if len(split_outside(text, "+")) > 1:
        return text
    word, known = text.strip(), detectors()
    if word in known:
        return known[word]
    raise SpecError(
        f"no detector is called {text!r}",
        needed="signature+reference, signature+reference+calibrator, or a name of `causalmad list detectors`",
        tries=[*nearest(word.partition("[")[0], known), f"'{word or 'activations'}+mahalanobis'"],
    )
