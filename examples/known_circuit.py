"""A circuit that is known: does the claim about it hold, is it found without the claim, and what fails in an anomaly?

A GPT-2 names the indirect object ("when Ann and Bob went to the park, Bob gave the ring to" - Ann) by a planted circuit
of three heads. With two words together it takes a shortcut: the first name, by another head of the last layer. Any
detector sees that other head; one that tests the claim says which part of it no longer holds.
"""

from __future__ import annotations

import torch
from sklearn.metrics import roc_auc_score

import causalmad as cm


def main() -> None:
    """Check the claim and a wrong one, look for the circuit, and make a detector of the claim."""
    torch.set_num_threads(1)  # the matrices are small
    task = cm.tasks.Ioi()
    data, preserved = task.load(seed=0), []
    trusted, test, labels = data.trusted[:400], data.test[:100], data.labels[:100]
    for hypothesis in (task.hypothesis(), task.wrong_hypothesis()):
        report = hypothesis.check(data.model, trusted, seed=0)
        print(report)
        preserved.append(0.0 if report.preserved is None else report.preserved.recovered)
        for name, accuracy in cm.interchange_accuracy(data.model, hypothesis, trusted, pairs=200).items():
            print(f"  {name}: interchange accuracy {accuracy.share:.3f}")
    circuit = cm.hypotheses.discover(data.model, trusted[:128], level="nodes", seed=0)
    first, *rest = sorted(circuit.weights.items(), key=lambda pair: -abs(pair[1]))
    print(f"found without the claim: {first[0]} first, then {', '.join(name for name, _ in rest[:4])}")
    fitted = cm.Detector(cm.signatures.Interchange(task.hypothesis(), draws=2)).fit(data.model, trusted, seed=0)
    detection = fitted.detect(test, alpha=0.05)
    found, share = roc_auc_score(labels, detection.scores), fitted.detect(data.normal[:200], 0.05).flags.mean()
    print(f"AUROC {found:.3f}; flagged of fresh normal inputs at 0.05: {share:.3f}")
    explanation = detection.explain(int(detection.scores.argmax()))
    explanation.show(5)
    print(f"what failed: {explanation.failed}")
    if preserved[0] < 0.9 or preserved[1] > 0.5 or found < 0.95:
        raise SystemExit("the claim should hold, the wrong one should not, and the shortcut should be flagged")
    if first[0] != "a2.h0":
        raise SystemExit("the head that brings the name should be the first to be found")


if __name__ == "__main__":
    main()
