"""Claim: reading every block's residual stream costs at most 1.05 of a bare forward pass.

OMP_NUM_THREADS=1 python benchmarks/speed/capture.py [--size gpt2-small] [--rounds 20]
"""

from __future__ import annotations

import argparse

from side_by_side import SHAPES, bare, call, claim, opened, ratios, side_by_side, tokens


def main() -> None:
    """Measure, and record."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--size", choices=list(SHAPES), default="gpt2-small")
    options.add_argument("--rounds", type=int, default=20)
    given = options.parse_args()
    module, model = opened(given.size)
    inputs = tokens(module, 16)
    (batch,) = model.batches(inputs)
    places = [site.place for site in model.sites("residual")]
    sides = {
        "bare": bare(module, call(model, inputs)),
        "ours": lambda: model.run(batch, read=places, output=False),
        "with logits": lambda: model.run(batch, read=places),
    }
    times = side_by_side(sides, given.rounds, warm=2, repeat=1 if given.size == "gpt2-small" else 10)
    for side, name in (("ours", "without logits"), ("with logits", "with the last position's logits")):
        title = f"capture of all residual streams, {name} / bare forward pass ({given.size})"
        claim(title, ratios(times, side, "bare"), 1.05, setting=SHAPES[given.size])


if __name__ == "__main__":
    main()
