"""How soon the monitor raises its alarm after a change, and how often it does without one.

    python benchmarks/monitor.py [OUT.json]

Scores are normal numbers; after the change a share of them comes from a distribution that lies higher. Every run has a
calibration set of its own.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np

from causalmad.calibration import Conformal
from causalmad.calibration.martingale import log_capitals

ALARM = 0.01


def run(
    calibration: int, calm: int, share: float, shift: float, seed: int, after: int = 2000
) -> tuple[bool, int | None]:
    """Whether an alarm was raised before the change, and how many inputs after it came the first one."""
    draw = np.random.default_rng([calibration, calm, seed])
    valid = Conformal().fit(draw.normal(size=calibration)).conditional(ALARM / 2)
    odd = draw.random(after) < share
    scores = np.concatenate([draw.normal(size=calm), draw.normal(size=after) + shift * odd])
    raised = np.flatnonzero(log_capitals(valid.p_values(scores)) >= math.log(2 / ALARM))
    later = raised[raised >= calm]
    return bool((raised < calm).any()), int(later[0] - calm + 1) if len(later) else None


def main(out: Path, runs: int = 20) -> None:
    rows = []
    for calibration in (100, 300, 1000):
        for calm in (0, 1000, 10_000):
            for share, shift in ((1.0, 3.0), (0.2, 4.0), (0.05, 4.0)):
                found = [run(calibration, calm, share, shift, seed) for seed in range(runs)]
                delays = sorted(delay for _, delay in found if delay is not None)
                rows.append(
                    {
                        "calibration inputs": calibration,
                        "normal inputs before": calm,
                        "share changed": share,
                        "shift": shift,
                        "runs": runs,
                        "false alarms": sum(false for false, _ in found),
                        "found": len(delays),
                        "median delay": float(np.median(delays)) if delays else None,
                        "longest delay": delays[-1] if delays else None,
                    }
                )
                print(rows[-1])
    out.write_text(json.dumps({"alarm": ALARM, "after": 2000, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".json"))
