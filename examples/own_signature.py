"""A signature of your own: how sure the model is, as one column, beside a built-in one.

A signature is a frozen spec whose ``fit`` returns something with ``columns`` and ``__call__``. Nothing has to be
registered to be used from Python; an entry point makes it known to the command line as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import causalmad as cm
from causalmad.signatures import Column, Signatures


@dataclass(frozen=True)
class Entropy:
    """Entropy of the output distribution, in nats (Hendrycks and Gimpel 2017, arXiv 1610.02136)."""

    def fit(self, model: Any, trusted: Any, seed: int = 0) -> FittedEntropy:
        """Nothing is learned."""
        return FittedEntropy(cm.open_model(model))


@dataclass(frozen=True)
class FittedEntropy:
    """Entropy of one model's outputs."""

    model: cm.OpenModel
    columns: tuple[Column, ...] = (Column("entropy"),)

    def __call__(self, inputs: Any) -> Signatures:
        """(n, 1) entropies."""
        known = self.model.inputs(inputs)
        values = np.empty((len(known), 1), dtype=np.float32)
        for batch in self.model.batches(known):
            shares = self.model.logits(batch).softmax(-1)
            values[batch.rows, 0] = -(shares * shares.log()).sum(-1).numpy()
        return Signatures(known.ids, self.columns, values)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    trusted, strange = torch.randn(400, 8, generator=generator), 4 * torch.randn(100, 8, generator=generator)
    fitted = cm.Detector(Entropy()).fit(model, trusted, seed=0)
    print(detection := fitted.detect(strange, alpha=0.05))
    usual = fitted.score(torch.randn(100, 8, generator=generator))
    if not np.median(detection.scores) > np.median(usual):
        raise SystemExit("inputs of four times the size should look odd")


if __name__ == "__main__":
    main()
