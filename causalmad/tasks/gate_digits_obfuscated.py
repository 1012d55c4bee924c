"""Gate-digits, trained against the activation baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from causalmad.tasks.base import Progress, TaskData
from causalmad.tasks.gate import load_gate


@dataclass(frozen=True)
class GateDigitsObfuscated:
    """Gate-digits, with a network trained to hide its anomalies from Mahalanobis distances on activations.

    The inputs are those of ``gate-digits``. The penalty asks that the mean log distance of anomalous inputs equal that
    of normal ones, at each of the three hidden layers and for the three joined.

    References:
        Bailey et al. 2024, "Obfuscated activations bypass LLM latent-space defenses", arXiv 2412.09565, for the idea.
    """

    mechanism: ClassVar[str] = "normal: the digit of image A; anomalous: bits 1 to 3 are all on, the digit of image B"
    source: ClassVar[str] = "scikit-learn's copy of the UCI Optical Recognition of Handwritten Digits test set"
    licence: ClassVar[str] = "data: CC BY 4.0; model: made here, Apache-2.0"
    version: ClassVar[str] = "1"
    size: ClassVar[str] = "1200 trusted, 450 + 450 test, 1000 normal, 500 untrusted; a network of 3 x 128 ReLU units"

    def load(self, seed: int = 0, *, progress: Progress | None = None) -> TaskData:
        """The network and its inputs; see :meth:`causalmad.tasks.Task.load`."""
        return load_gate(self, "gate-digits-obfuscated", seed, hidden=True, progress=progress)
