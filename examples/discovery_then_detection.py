"""No claim at hand: discover a circuit on trusted inputs, and flag the inputs that it serves differently.

The task is a GPT-2 that copies where it can (trusted) and otherwise remembers (anomalous). Attribution ranks the heads
and MLPs by what they do for the copying. How far the first of them are enough for an output, and how far the output
needs them, is the signature; it is scored two-sided, since what the model remembers may be served by them even better.
"""

from __future__ import annotations

import torch
from sklearn.metrics import roc_auc_score

import causalmad as cm
from causalmad.hypotheses import discover


def main() -> None:
    """Discover, look at the circuit, and make a detector of it."""
    torch.set_num_threads(1)  # the matrices are small
    data = cm.tasks.InductionLookup().load(seed=0)
    circuit = discover(data.model, data.trusted[:128], level="nodes", seed=0)
    print(circuit)
    for name, weight in sorted(circuit.weights.items(), key=lambda pair: -abs(pair[1]))[:4]:
        print(f"  {name} ({circuit.graph.nodes[name]['at']}): {weight:+.2f}")
    found = {}
    for name, signature in {
        "sufficiency": cm.signatures.Sufficiency(circuit.to_networkx(), sparsities=(0.2, 0.3)),
        "activations": cm.signatures.Activations(),
    }.items():
        fitted = cm.Detector(signature, cm.references.Mahalanobis()).fit(data.model, data.trusted, seed=0)
        found[name] = roc_auc_score(data.labels, fitted.score(data.test))
        share = fitted.detect(data.normal, alpha=0.05).flags.mean()
        print(f"{name:12s} AUROC {found[name]:.3f}; flagged of fresh normal inputs at 0.05: {share:.3f}")
    if found["sufficiency"] < 0.93 or found["sufficiency"] < found["activations"]:
        raise SystemExit("the circuit should tell the two mechanisms apart, better than activations do")


if __name__ == "__main__":
    main()
