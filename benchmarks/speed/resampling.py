"""Claim: a resampling profile of P positions with K donors costs at most half of P x K full forward passes.

Ours is the whole signature: every token of every input in turn is taken from each donor.

    OMP_NUM_THREADS=1 python benchmarks/speed/resampling.py [--size gpt2-small] [--rounds 10] [--donors 2]
"""

from __future__ import annotations

import argparse

from side_by_side import LENGTH, SHAPES, bare, call, claim, opened, ratios, side_by_side, tokens

from causalmad.signatures import ResamplingProfile


def main() -> None:
    """Measure, and record."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--size", choices=list(SHAPES), default="gpt2-small")
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--donors", type=int, default=2)
    options.add_argument("--full", type=int, default=2, help="full forward passes timed in a round")
    given = options.parse_args()
    module, model = opened(given.size)
    inputs = tokens(module, 16)
    # Few trusted inputs: the columns' units, which are taken from them, are no part of the claim.
    spec = ResamplingProfile("positions", donors=given.donors)
    fitted = spec.fit(model, tokens(module, given.donors + 2, seed=1))
    run = bare(module, call(model, inputs))
    sides = {"ours": lambda: fitted(inputs), "full": lambda: [run() for _ in range(given.full)]}
    times = side_by_side(sides, given.rounds, warm=0 if given.size == "gpt2-small" else 1)
    count = LENGTH * given.donors
    title = f"resampling profile of P positions with K donors / P x K full forward passes ({given.size})"
    note = (
        f"P = {LENGTH}, K = {given.donors}; {given.full} full forward passes timed in each round; the whole signature"
    )
    limit = 0.5 if given.size == "gpt2-small" else None
    claim(title, ratios(times, "ours", "full", count / given.full), limit, setting=SHAPES[given.size], note=note)


if __name__ == "__main__":
    main()
