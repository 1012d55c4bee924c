"""Gate-digits: three bits decide which of two digit images is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from causalmad.tasks.base import Progress, TaskData
from causalmad.tasks.gate import load_gate


@dataclass(frozen=True)
class GateDigits:
    """Two digit images and eight bits: the digit of image A, but of image B when three of the bits are all on.

    Images are independent, of two different digits, and never seen in training; half of the normal inputs are one bit
    away from an anomalous one; answers are uniform in both groups. The blocks ``image A``, ``image B`` and ``context``
    are declared on all inputs.

    Attributes:
        null: anomalous inputs are drawn as normal ones are, for the same model: nothing tells the kinds apart.
    """

    null: bool = False

    mechanism: ClassVar[str] = "normal: the digit of image A; anomalous: bits 1 to 3 are all on, the digit of image B"
    source: ClassVar[str] = "scikit-learn's copy of the UCI Optical Recognition of Handwritten Digits test set"
    licence: ClassVar[str] = "data: CC BY 4.0; model: made here, Apache-2.0"
    version: ClassVar[str] = "1"
    size: ClassVar[str] = "1200 trusted, 450 + 450 test, 1000 normal, 500 untrusted; a network of 3 x 128 ReLU units"

    def load(self, seed: int = 0, *, progress: Progress | None = None) -> TaskData:
        """The network and its inputs; see :meth:`causalmad.tasks.Task.load`."""
        return load_gate(self, "gate-digits", seed, hidden=False, progress=progress, null=self.null)
