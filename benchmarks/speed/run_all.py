"""Runs every claim about speed, one process after another, and writes the page.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/speed/run_all.py [--rounds 10] [--only exact_patching ...]

A quiet machine takes about an hour; what is there already is replaced claim by claim.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SIZES = ("small", "gpt2-small")
SCRIPTS = ("capture", "edges", "attribution", "resampling", "exact_patching", "paths", "streaming_moments", "scaling")
OPTIONS = {"exact_patching": ["--peers"]}
WITHOUT_SIZE = ("streaming_moments", "scaling")


def main() -> None:
    """Run them all."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--only", nargs="*", default=SCRIPTS, choices=SCRIPTS)
    options.add_argument("--sizes", nargs="*", default=SIZES, choices=SIZES)
    given = options.parse_args()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for script in given.only:
        for size in ("",) if script in WITHOUT_SIZE else given.sizes:
            # A whole of exact patching takes a round for every layer, one of paths for every layer but the first.
            whole = {"exact_patching": 12, "paths": 11}.get(script, 1)
            rounds = -(-given.rounds // whole) * whole
            words = [] if script == "scaling" else ["--rounds", str(rounds)]
            words += ["--size", size, *OPTIONS.get(script, [])] if size else []
            done = subprocess.run([sys.executable, str(HERE / f"{script}.py"), *words], env=environment)
            if done.returncode:
                print(f"{script} {size} failed", flush=True)
    subprocess.run([sys.executable, str(HERE / "page.py")], env=environment, check=True)


if __name__ == "__main__":
    main()
