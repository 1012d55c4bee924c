"""A sparse autoencoder of trusted activations as a signature: what it cannot reconstruct is not of the trusted kind.

A layer of 24 units holds 40 features, three of which are on in an input, and the autoencoder learns those that trusted
inputs have. In anomalous inputs three are on as well, one of which no trusted input has. Single units hardly show that.
"""

from __future__ import annotations

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import causalmad as cm

FEATURES, UNITS, ON = 40, 24, 3


def inputs(count: int, odd: bool, seed: int) -> Tensor:
    """(count, FEATURES) three features each; the last one is on in odd inputs and in no other."""
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.rand(count, FEATURES - 1, generator=draw).argsort(1)[:, :ON]
    if odd:
        chosen[:, 0] = FEATURES - 1
    return torch.zeros(count, FEATURES).scatter(1, chosen, 0.5 + torch.rand(count, ON, generator=draw))


def main() -> None:
    """Train a top-k autoencoder on a half of the trusted inputs, and compare it with what it was trained on."""
    torch.set_num_threads(1)  # the matrices are small
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(FEATURES, UNITS, bias=False), nn.GELU(), nn.Linear(UNITS, 4))
        nn.init.orthogonal_(model[0].weight)
    trusted, fresh = inputs(3000, odd=False, seed=1), inputs(2000, odd=False, seed=2)
    test = torch.cat([inputs(200, odd=False, seed=3), inputs(200, odd=True, seed=4)])
    labels = torch.arange(400) >= 200
    # One column of latents, the commonest, and four counts: with a column for each, 40 of them drown the error.
    code = cm.signatures.SparseCode("0", latents=64, k=4, steps=600, most=1)
    found = {}
    for name, signature in {"activations": cm.signatures.Activations(("0",)), "sparse code": code}.items():
        fitted = cm.Detector(signature).fit(model, trusted, seed=0)
        found[name] = roc_auc_score(labels, fitted.score(test))
        share = fitted.detect(fresh, alpha=0.05).flags.mean()
        print(f"{name:12s} AUROC {found[name]:.3f}; flagged of fresh normal inputs at 0.05: {share:.3f}")
    detection = fitted.detect(test, alpha=0.05)
    explanation = detection.explain(int(detection.scores.argmax()))
    explanation.show()
    print(f"what leads: {explanation.leading}")
    # One from a file, a folder of sae-lens or the hub: SparseCode("0", weights="sae.safetensors", k=4).
    if found["sparse code"] < 0.85 or found["sparse code"] < found["activations"]:
        raise SystemExit("what the autoencoder cannot reconstruct should tell the new feature")


if __name__ == "__main__":
    main()
