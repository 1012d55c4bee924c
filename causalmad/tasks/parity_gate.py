"""Parity-gate: the parity of three bits decides which of two digit images is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from causalmad.tasks.base import Progress, TaskData
from causalmad.tasks.gate import load_gate


@dataclass(frozen=True)
class ParityGate:
    """Gate-digits, with the digit of image B named where an odd number of the three bits is on.

    Parity of three leaves the means and the covariances of the inputs as they are, so that no linear look at the input
    tells the two kinds apart. A network learns it only by a curriculum, over one bit, then two, then three.
    """

    mechanism: ClassVar[str] = "normal: the digit of image A; anomalous: bits 1 to 3 have odd parity, that of image B"
    source: ClassVar[str] = "scikit-learn's copy of the UCI Optical Recognition of Handwritten Digits test set"
    licence: ClassVar[str] = "data: CC BY 4.0; model: made here, Apache-2.0"
    version: ClassVar[str] = "1"
    size: ClassVar[str] = "1200 trusted, 450 + 450 test, 1000 normal, 500 untrusted; a network of 3 x 128 ReLU units"

    def load(self, seed: int = 0, *, progress: Progress | None = None) -> TaskData:
        """The network and its inputs; see :meth:`causalmad.tasks.Task.load`."""
        return load_gate(self, "parity-gate", seed, hidden=False, progress=progress, parity=3)
