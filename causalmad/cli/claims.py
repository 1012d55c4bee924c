"""``--hypothesis module:name``: a claim about a circuit, written in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from causalmad.detector import Detector
    from causalmad.hypotheses import Hypothesis as Claim

Hypothesis = Annotated[
    str | None,
    typer.Option(help="A causalmad.Hypothesis, in place of the task's own; its module is run.", metavar="MODULE:NAME"),
]


def with_claim(detector: Detector, name: str | None) -> Detector:
    """The detector with the hypothesis called ``module:name``; None changes nothing."""
    if name is None:
        return detector
    from causalmad.names import with_hypothesis

    return with_hypothesis(detector, load_claim(name), asked=True)


def load_claim(name: str) -> Claim:
    """The hypothesis called ``module:name``, the module being looked up from the current folder on."""
    import os
    import sys

    from causalmad.hypotheses import Hypothesis as Loaded

    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        return Loaded.load(name)
    finally:
        sys.path.remove(here)
