"""Claim: after ``kill -9`` the same call computes at most one shard again.

    python benchmarks/scale/resume.py [--kills 20] [--write]

A child computes signatures of a small GPT-2 into a cache and is killed at a random moment, again and again, until one
comes to its end. The model writes down every row that it is given before it computes it, whoever runs it: what was
begun and is not on disk after a kill is what that kill cost. At the end every input has to be in the cache once, with
the bits of a run that was not disturbed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import claims  # sets the number of threads before torch is loaded
import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import GPT2Config, GPT2LMHeadModel

import causalmad as cm

SHARD, BATCH, LENGTH = 64, 16, 16


def on_disk(folder: Path) -> int:
    """Rows in the cache, all of which have to be different."""
    files = [path for path in folder.rglob("*.safetensors") if not path.name.startswith(".")]
    keys = np.concatenate([np.empty((0, 16), np.uint8), *(load_file(path)["keys"] for path in files)])
    assert len(np.unique(keys, axis=0)) == len(keys), "a row is there twice"
    return len(keys)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="put the claim into results.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 64, "vocab_size": 1000, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    opened = cm.open_model(model, batch_size=BATCH)
    known = opened.inputs({"input_ids": list(torch.randint(1, 1000, (SHARD * options.kills + 32, LENGTH)))})
    spec = cm.signatures.AttributionPatching()
    fitted, fresh = spec.fit(opened, known[:32]), known[32:]
    started = time.perf_counter()
    expected = fitted(fresh).values
    a_shard = (time.perf_counter() - started) / options.kills
    draw, costs = random.Random(0), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ledger = folder / "ledger"
        out = os.open(ledger, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        words = model.get_input_embeddings()
        words.register_forward_pre_hook(lambda _, args: os.write(out, f"{len(args[0])}\n".encode()) and None)
        lost = 0
        while True:
            child = os.fork()
            if not child:
                cm.extract(fitted, fresh, cache=folder / "cache", spec=spec, shard=SHARD)
                os._exit(0)
            if len(costs) < options.kills and on_disk(folder / "cache") < len(fresh):
                size = ledger.stat().st_size
                while ledger.stat().st_size == size:  # a process has to come to its first run before it is worth a kill
                    time.sleep(0.01)
                time.sleep(draw.uniform(0, 3 * a_shard))
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if os.WIFEXITED(status):
                if os.WEXITSTATUS(status):
                    raise SystemExit("a child failed")
                break
            cost = sum(map(int, ledger.read_text().split())) - on_disk(folder / "cache") - lost
            lost += cost
            costs.append(cost / SHARD)
        assert on_disk(folder / "cache") == len(fresh), "a row is lost"
        found = cm.extract(fitted, fresh, cache=folder / "cache", spec=spec, shard=SHARD)
        assert found.computed == 0 and found.values.tobytes() == expected.tobytes(), "a row has other bits"
    name = "rows computed again after a kill, in shards (the most of all kills)"
    if options.write:
        setting = f"2 layers of width 64, {len(fresh)} inputs, shards of {SHARD} rows, {len(costs)} kills by SIGKILL"
        claims.write_claim(name, [max(costs)], 1.0, setting=setting, each=[round(cost, 3) for cost in costs])
    else:
        print(f"{name}: {max(costs):.3f}; {len(costs)} kills, {np.mean(costs):.3f} on average")


if __name__ == "__main__":
    main()
