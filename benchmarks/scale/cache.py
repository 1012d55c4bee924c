"""Claim: reading signatures from the cache takes at most 0.05 of computing them, for GPT-2-small's shape.

    python benchmarks/scale/cache.py [--rounds 10] [--inputs 512] [--write]

Random weights, 32 tokens, batch 16, one thread. Both sides run in turn, in one process: ``extract`` into an empty
folder (the model is hashed, rows are computed and written), and the same call again (the model is hashed, checksums are
checked, rows are read). The ratio is taken within each round, the median counts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

import claims  # sets the number of threads before torch is loaded
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import causalmad as cm

LENGTH, BATCH = 32, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--inputs", type=int, default=512)
    parser.add_argument("--write", action="store_true", help="put the claim into results.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0)).eval()
    opened = cm.open_model(model, batch_size=BATCH)
    rows = torch.randint(1, model.config.vocab_size, (options.inputs + 32, LENGTH))
    known = opened.inputs({"input_ids": list(rows)})
    fitted = cm.signatures.Activations().fit(opened, known[:32])
    fresh, spec = known[32:], cm.signatures.Activations()
    ratios, processor, hashing = [], [], []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            took, busy = [], []
            for expected in (options.inputs, 0):
                started, worked = time.perf_counter(), time.process_time()
                found = cm.extract(fitted, fresh, cache=folder, spec=spec)
                assert float(found.values.sum()) != 0 and found.computed == expected
                took.append(time.perf_counter() - started)
                busy.append(time.process_time() - worked)
        worked = time.process_time()
        opened.fingerprint()
        hashing.append(time.process_time() - worked)
        ratios.append(took[1] / took[0])
        processor.append(busy[1] / busy[0])
        seconds = (
            f"{took[0]:.2f} and {took[1]:.3f} s of wall time, {busy[0]:.2f} and {busy[1]:.3f} s of the processor's"
        )
        print(f"round {number + 1}: {seconds}, of which the model's hash {hashing[-1]:.3f} s", flush=True)
    name = "cache read / recomputation, GPT-2-small shape"
    setting = f"activations of all residual streams, {options.inputs} inputs, batch {BATCH} x {LENGTH} tokens"
    if options.write:
        note = f"of each reading, a median of {median(hashing):.2f} s hashes the model, however many inputs there are"
        claims.write_claim(name, ratios, 0.05, setting=setting, note=note, cpu=round(median(processor), 4))
    else:
        print(f"{name}: {median(ratios):.4f} ({setting})")


if __name__ == "__main__":
    main()
