"""Detectors by name, wherever the command line takes one."""

from __future__ import annotations

from collections.abc import Mapping


def detectors() -> Mapping[str, str]:
    """Name of a ready-made detector -> its text; ``recommended`` is the first of them."""
    from causalmad.detectors import names

    return names()


def detector_text(text: str) -> str:
    """A detector as its parts, see :func:`causalmad.detectors.spelled_out`.

    Raises:
        SpecError: when it is a single word and no detector's name, with the nearest three.
    """
    from causalmad.detectors import spelled_out

    return spelled_out(text)
