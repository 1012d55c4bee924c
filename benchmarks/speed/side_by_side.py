"""What the claims about speed share: the models, and timing side by side.

Every side of a claim runs once in each round, in turn, in one process of one thread; a ratio is taken within each round
and the median over the rounds is what counts, so that a load beside the benchmark falls on both. Wall time decides;
processor time stands beside it.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from claims import record  # sets the number of threads

from causalmad import Inputs, OpenModel, open_model

BATCH, LENGTH = 16, 32
SIZES = {
    "gpt2-small": {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257, "n_positions": 1024},
    "small": {"n_layer": 2, "n_head": 4, "n_embd": 64, "vocab_size": 1000, "n_positions": 64},
}
SHAPES = {
    "gpt2-small": "GPT-2-small shape, random weights, batch 16 x 32 tokens",
    "small": "2 layers of width 64, batch 16 x 32 tokens",
}

Times = dict[str, dict[str, list[float]]]


def gpt2(size: str, **options: Any) -> Any:
    """A GPT-2 with random weights: ``gpt2-small`` or ``small``, or either with other options."""
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(**{**SIZES[size], "bos_token_id": 0, "eos_token_id": 0, **options})
    return transformers.GPT2LMHeadModel(config).eval()


def tokens(model: Any, rows: int, length: int = LENGTH, seed: int = 0) -> Inputs:
    """Random rows of tokens, all different."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, model.config.vocab_size, (rows, length), generator=draw)
    return Inputs.of({"input_ids": list(ids)})


def opened(size: str, batch: int = BATCH, **options: Any) -> tuple[Any, OpenModel]:
    """A model, and the same opened."""
    module = gpt2(size, **options)
    return module, open_model(module, batch_size=batch)


def call(model: OpenModel, inputs: Inputs) -> dict[str, torch.Tensor]:
    """The arguments with which a plain forward runs on a batch."""
    (batch,) = model.batches(inputs)
    return {**dict(batch.call[1]), "use_cache": False}


def bare(module: Any, kwargs: Mapping[str, Any]) -> Callable[[], Any]:
    """The bare forward pass, without gradients: the unit of most claims."""

    def run() -> Any:
        with torch.no_grad():
            return module(**kwargs).logits

    return run


def side_by_side(
    sides: Mapping[str, Callable[[], Any]],
    rounds: int,
    warm: int = 1,
    repeat: int = 1,
    before: Callable[[int], None] = lambda turn: None,
) -> Times:
    """Wall and processor seconds of every side in every round.

    Args:
        sides: name -> what is timed.
        rounds: how many rounds; the order of the sides turns round by round.
        warm: untimed rounds before.
        repeat: how often a side runs within a round, for short ones; seconds are of a single run.
        before: called with the number of the round, untimed.
    """
    torch.set_num_threads(1)
    for _ in range(warm):
        for run in sides.values():
            run()
    found: Times = {name: {"wall": [], "cpu": []} for name in sides}
    names = list(sides)
    for turn in range(rounds):
        before(turn)
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(repeat):
                sides[name]()
            found[name]["wall"].append((time.perf_counter() - wall) / repeat)
            found[name]["cpu"].append((time.process_time() - cpu) / repeat)
    return found


def ratios(times: Times, above: str, below: str, times_below: float = 1.0) -> dict[str, list[float]]:
    """One side over another in every round, by both clocks.

    Args:
        times: what :func:`side_by_side` gave.
        above: the side whose time is the numerator.
        below: the side whose time is the denominator.
        times_below: how many of ``below`` are meant.
    """
    return {
        clock: [a / (b * times_below) for a, b in zip(times[above][clock], times[below][clock], strict=True)]
        for clock in ("wall", "cpu")
    }


def claim(
    name: str,
    ratio: Mapping[str, Sequence[float]],
    limit: float | None,
    *,
    at_least: bool = False,
    setting: str = "",
    note: str = "",
    each: str = "",
) -> None:
    """Put a claim into the results, in place of what was there under its name.

    Args:
        name: what is claimed.
        ratio: clock -> the figure of every round; the median of wall time is the value.
        limit: what the value may be at most; None where the figure is only reported.
        at_least: whether it has to be at least the limit.
        setting: on what it was measured.
        note: what else there is to know.
        each: what a round stands for where the rounds are parts of a whole: then the value is their mean.
    """
    middle = mean if each else median
    value = float(middle(ratio["wall"]))
    holds = None if limit is None else bool(value >= limit if at_least else value <= limit)
    record(
        {
            "name": name,
            "value": round(value, 4),
            "limit": limit,
            "holds": holds,
            "runs": len(ratio["wall"]),
            "direction": "at least" if at_least else "at most",
            "cpu": round(float(middle(ratio["cpu"])), 4),
            "setting": setting,
            "note": "; ".join(filter(None, [note, each and f"mean over the rounds, each {each}"])),
            "ratios": {clock: [round(float(x), 4) for x in values] for clock, values in ratio.items()},
        }
    )


def failed(name: str, limit: float | None, why: str, *, at_least: bool = False, setting: str = "") -> None:
    """Put a claim that could not be measured into the results, with the reason."""
    record(
        {
            "name": name,
            "value": None,
            "limit": limit,
            "holds": None,
            "runs": 0,
            "direction": "at least" if at_least else "at most",
            "setting": setting,
            "note": why,
        }
    )
