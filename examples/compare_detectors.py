"""Which of two detectors is better? A suite of one's own, its leaderboard, and the difference on the same inputs.

On one task both detectors do well; the network of the other was trained so that activations look the same for both
kinds of input. Every run leaves a log: a stopped bench goes on from there, and logs are all that a comparison needs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from causalmad.evaluation.bench import bench
from causalmad.evaluation.comparing import compare
from causalmad.evaluation.logs import read_logs
from causalmad.evaluation.suites import Suite

DETECTORS = {
    "activations": "activations+mahalanobis",
    "attribution": "attribution-patching[units=blocks]+mahalanobis",
}


def main() -> None:
    """Run the suite, show the leaderboard, and compare input by input."""
    suite = Suite("mine", ("gate-digits", "gate-digits-obfuscated"), DETECTORS, seeds=1)
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        board = bench(suite, folder, processes=1)
        console.print(board.table())
        board.plot().figure.savefig(folder / "leaderboard.png", bbox_inches="tight")
        found = compare(read_logs([folder]), "attribution", "activations")
        console.print(found.table())
        written = sorted(path.name for path in folder.glob("leaderboard.*"))
    print(written)
    if board.order[0] != "attribution" or len(written) != 4:
        raise SystemExit("what an output depends on should tell more here than what is there")


if __name__ == "__main__":
    main()
