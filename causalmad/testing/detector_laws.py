"""Laws of whole detectors: explanations add up, saved ones score the same elsewhere, and a null scores a half."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from causalmad.detector import Detector, FittedDetector
from causalmad.testing.law import LawBroken
from causalmad.testing.toys import Toy, toy
from causalmad.testing.traces import untouched


def fit(detector: Detector, toy: Toy, seed: int = 0) -> FittedDetector:
    """The detector fitted on a toy; what compares with untrusted inputs gets the fresh ones, unlabelled."""
    return detector.fit(toy.model, toy.trusted, toy.fresh if detector.compares else None, seed=seed)


def law_explanations_sum_to_the_score(detector: Detector, toy: Toy) -> None:
    """The contributions of every explanation sum to the score, also where the reference has none of its own."""
    fitted = fit(detector, toy, 0)
    for reason in fitted.explain(toy.fresh[:3]):
        total = sum(part.amount for part in reason.contributions)
        if not np.isclose(total, reason.score, rtol=1e-6, atol=1e-9):
            raise LawBroken("contributions sum to the score", f"{reason.score:.9g}", f"{total:.9g} for {reason.id}")
        sizes = [abs(part.amount) for part in reason.contributions]
        if sizes != sorted(sizes, reverse=True):
            raise LawBroken("the largest contributions come first", "falling sizes", str(sizes[:5]))


def law_the_sign_is_turned_once(detector: Detector, toy: Toy) -> None:
    """Scores are higher where more anomalous: the reference's ``score_samples`` with the other sign."""
    fitted = fit(detector, toy, 0)
    expected = -np.asarray(fitted.reference.score_samples(fitted.signature(toy.fresh).values), dtype=np.float64)
    if not np.array_equal(fitted.score(toy.fresh), expected):
        raise LawBroken("score = -score_samples", str(expected[:3]), str(fitted.score(toy.fresh)[:3]))


def law_same_seed_same_bits(detector: Detector, toy: Toy) -> None:
    """Two fits with the same seed give the same bits, in whatever order the trusted inputs come; nothing is left."""
    shuffled = toy.trusted[np.random.default_rng(0).permutation(len(toy.trusted))]
    with untouched(toy.model, "after two fits"):
        first = fit(detector, toy, 4).score(toy.fresh)
        again = fit(detector, replace(toy, trusted=shuffled), 4).score(toy.fresh)
    if first.tobytes() != again.tobytes():
        law = "the same seed gives the same bits, in whatever order the trusted inputs come"
        raise LawBroken(law, str(first[:3]), str(again[:3]))


def law_a_null_scores_a_half(detector: Detector, toy: Toy) -> None:
    """Where "anomalies" use the normal mechanism, the AUROC's 99.9 % interval holds one half.

    The interval is that of the Mann-Whitney statistic of two samples of one distribution.
    """
    scores = fit(detector, toy, 0).score(toy.fresh)
    half = len(scores) // 2
    normal, anomalous = scores[:half], scores[half:]
    wins = (anomalous[:, None] > normal[None, :]) + 0.5 * (anomalous[:, None] == normal[None, :])
    auroc = float(wins.mean())
    width = 3.29 * float(np.sqrt((len(scores) + 1) / (12 * len(normal) * len(anomalous))))
    if not abs(auroc - 0.5) <= width:
        raise LawBroken("a null scores a half", f"an AUROC within {width:.3f} of 0.5", f"{auroc:.3f}")


DETECTOR_LAWS: tuple[Callable[[Detector, Toy], None], ...] = (
    law_explanations_sum_to_the_score,
    law_the_sign_is_turned_once,
    law_same_seed_same_bits,
    law_a_null_scores_a_half,
)


def law_saved_detectors_score_the_same_elsewhere(fitted: Mapping[str, FittedDetector], toy: Toy, folder: Path) -> None:
    """Save, load in a fresh process, score: the same bits.

    Args:
        fitted: name of a folder -> a detector that was fitted on the toy.
        toy: the toy, which the other process makes again by its name.
        folder: where to save.
    """
    law = "a saved detector scores the same bits in a fresh process"
    for name, detector in fitted.items():
        detector.save(folder / name)
    sizes = [str(len(toy.trusted)), str(len(toy.fresh)), str(torch.get_num_threads())]
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        __name__,
        toy.name,
        *sizes,
        *(str(folder / name) for name in fitted),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LawBroken(law, "scores", done.stderr[-2000:])
    for (name, detector), found in zip(fitted.items(), json.loads(done.stdout), strict=True):
        expected = [value.hex() for value in detector.score(toy.fresh).tolist()]
        differing = [i for i, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1]]
        if differing:
            first = differing[0]
            detail = f"{len(differing)} differ, the first {float.fromhex(found[first])!r}"
            raise LawBroken(law, f"{name}: {float.fromhex(expected[first])!r}", detail)


def _elsewhere(name: str, trusted: str, fresh: str, threads: str, *folders: str) -> None:
    torch.set_num_threads(int(threads))
    again = toy(name, int(trusted), int(fresh))
    found: list[Any] = []
    for folder in folders:
        scores = FittedDetector.load(folder, again.model).score(again.fresh)
        found.append([value.hex() for value in scores.tolist()])
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    _elsewhere(*sys.argv[1:])
