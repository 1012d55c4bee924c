"""Causal scrubbing as a detector: inputs for which a claim about trusted inputs does not hold are flagged.

The task is a GPT-2 in which one of two heads carries the answer: head A on trusted inputs, head B on anomalous ones.
Both give the same answer. The claim "head A carries the answer" holds on trusted inputs, which a check confirms; what
fails for an anomalous input is the part of it that says that nothing else matters.
"""

from __future__ import annotations

import torch
from sklearn.metrics import roc_auc_score

import causalmad as cm


def main() -> None:
    """Check the claim and a wrong one on trusted inputs, make a detector of the true one, and ask it what failed."""
    torch.set_num_threads(1)  # the matrices are small
    task = cm.tasks.PlantedRoutes()
    data = task.load(seed=0)
    kept = {}
    for hypothesis in (task.hypothesis(), task.wrong_hypothesis()):
        report = hypothesis.check(data.model, data.trusted, seed=0)
        print(report)
        kept[hypothesis.name] = 0.0 if report.preserved is None else report.preserved.recovered
    signature = cm.signatures.CausalScrubbing(task.hypothesis())
    fitted = cm.Detector(signature, cm.references.Mahalanobis()).fit(data.model, data.trusted, seed=0)
    detection = fitted.detect(data.test, alpha=0.01)
    found = roc_auc_score(data.labels, detection.scores)
    caught, wrong = detection.flags[data.labels].mean(), fitted.detect(data.normal, alpha=0.01).flags.mean()
    print(f"AUROC {found:.3f}; flagged at 0.01: {caught:.3f} of the anomalies, {wrong:.3f} of fresh normal inputs")
    explanation = detection.explain(int(detection.scores.argmax()))
    explanation.show(5)
    print(f"what failed: {explanation.failed}")
    if kept[task.hypothesis().name] < 0.9 or kept[task.wrong_hypothesis().name] > 0.5:
        raise SystemExit("scrubbing should tell the true claim from the wrong one on trusted inputs")
    if found < 0.95 or wrong > 0.05:
        raise SystemExit("the claim should tell the two routes apart, and leave normal inputs alone")
    if explanation.failed not in ("unclaimed", "claimed", "whole"):
        raise SystemExit("what fails is that head A does all the work, not what it holds")


if __name__ == "__main__":
    main()
