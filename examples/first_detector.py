"""The main job on a task with a known answer: fit on trusted inputs, flag untrusted ones, say why, save and load."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sklearn.metrics import roc_auc_score

import causalmad as cm


def main() -> None:
    """Two images and eight bits: three bits together make the network answer from the other image."""
    data = cm.tasks.GateDigits().load(seed=0)
    for signature in (cm.signatures.AttributionPatching("blocks"), cm.signatures.Activations()):
        fitted = cm.Detector(signature, cm.references.Mahalanobis(), cm.calibration.Conformal()).fit(
            data.model, data.trusted, seed=0
        )
        found = roc_auc_score(data.labels, fitted.score(data.test))
        share = fitted.detect(data.normal, alpha=0.05).flags.mean()
        print(f"{type(signature).__name__:20s} AUROC {found:.3f}; flagged of fresh normal inputs at 0.05: {share:.3f}")
    detection = (
        cm.Detector(cm.signatures.AttributionPatching("blocks")).fit(data.model, data.trusted).detect(data.test, 0.01)
    )
    print(detection)
    detection.explain(int(detection.scores.argmax())).show()
    with tempfile.TemporaryDirectory() as folder:
        fitted.save(Path(folder) / "detector")
        again = cm.FittedDetector.load(Path(folder) / "detector", data.model)
        if not (again.score(data.test) == fitted.score(data.test)).all():
            raise SystemExit("a loaded detector should give the same scores")


if __name__ == "__main__":
    main()
