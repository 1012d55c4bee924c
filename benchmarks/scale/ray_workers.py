"""Claim: Ray with two workers of one thread takes at most 0.65 of the local engine's wall time for a row, on two cores.

    python benchmarks/scale/ray_workers.py [--rounds 10] [--inputs 256] [--write]

GPT-2-small's shape with random weights, 32 tokens, batch 16, all inputs new in every round. Local engine and Ray run in
turn. Start-up is left out: for Ray the clock starts when the first chunk arrives, and the first chunk of each of the
two workers is not counted, which is to Ray's disadvantage where both arrive together. The rows must be the same bits.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

import claims  # sets the number of threads before torch is loaded
import ray
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import causalmad as cm
from causalmad.extraction import Ray

LENGTH, BATCH, WORKERS = 32, 16, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--inputs", type=int, default=256)
    parser.add_argument("--write", action="store_true", help="put the claim into results.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0)).eval()
    opened = cm.open_model(model, batch_size=BATCH)
    spec = cm.signatures.Activations()
    fitted = spec.fit(opened, opened.inputs({"input_ids": torch.randint(1, 50257, (8, LENGTH))}))
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ratios = []
    for number in range(options.rounds):
        fresh = opened.inputs({"input_ids": list(torch.randint(1, 50257, (options.inputs, LENGTH)))})
        started = time.perf_counter()
        local = cm.extract(fitted, fresh, spec=spec, shard=BATCH)
        alone = (time.perf_counter() - started) / options.inputs
        arrived: list[float] = []
        far = cm.extract(
            fitted,
            fresh,
            spec=spec,
            shard=BATCH,
            engine=Ray(workers=WORKERS),
            progress=lambda what, done, total, arrived=arrived: arrived.append(time.perf_counter()) if done else None,
        )
        together = (arrived[-1] - arrived[0]) / (options.inputs - WORKERS * BATCH)
        assert far.values.tobytes() == local.values.tobytes()
        ratios.append(together / alone)
        print(f"round {number + 1}: {alone * 1e3:.1f} ms a row alone, {together * 1e3:.1f} ms with Ray", flush=True)
    ray.shutdown()
    name = "Ray with two workers of one thread / local with one thread, wall time per row"
    setting = f"activations of GPT-2-small's shape, {options.inputs} inputs, batch {BATCH} x {LENGTH} tokens, two cores"
    if options.write:
        claims.write_claim(name, ratios, 0.65, setting=setting, note="without start-up")
    else:
        print(f"{name}: {median(ratios):.4f} ({setting})")


if __name__ == "__main__":
    main()
