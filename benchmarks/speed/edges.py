"""Claim: scoring every edge of every input to first order (EAP) costs at most three bare forward passes.

Ours is the whole signature: all edges between the input, heads, MLPs, their queries, keys and values, and the logits,
against the mean of four trusted donors.

    OMP_NUM_THREADS=1 python benchmarks/speed/edges.py [--size gpt2-small] [--rounds 10]
"""

from __future__ import annotations

import argparse

from side_by_side import SHAPES, bare, call, claim, opened, ratios, side_by_side, tokens

from causalmad.signatures import EdgeAttribution


def main() -> None:
    """Measure, and record."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--size", choices=list(SHAPES), default="gpt2-small")
    options.add_argument("--rounds", type=int, default=10)
    given = options.parse_args()
    module, model = opened(given.size)
    inputs = tokens(module, 16)
    fitted = EdgeAttribution().fit(model, tokens(module, 16, seed=1))
    count = len(fitted.patcher.computation.edges)
    sides = {"bare": bare(module, call(model, inputs)), "ours": lambda: fitted(inputs)}
    times = side_by_side(sides, given.rounds, repeat=1 if given.size == "gpt2-small" else 5)
    title = f"per-input edge attribution (EAP) / bare forward pass ({given.size})"
    note = f"{count} edges, 4 donors, the whole signature"
    claim(title, ratios(times, "ours", "bare"), 3.0, setting=SHAPES[given.size], note=note)


if __name__ == "__main__":
    main()
