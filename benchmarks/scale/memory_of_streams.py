"""Claim: ``causalmad detect`` on a stream of 10^6 lines holds at most a tenth more memory than on 10^4.

    python benchmarks/scale/memory_of_streams.py [--lines 10000 100000 1000000] [--write]

Each length is a process of its own, fed through a pipe. Printed are the most memory that it held, what each further
input cost beyond the shortest stream, and the time. The detector is a cheap one, activations of a GPT-2 of one layer,
so that what grows would show.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from claims import write_claim  # sets the number of threads
from transformers import GPT2Config, GPT2LMHeadModel

import causalmad as cm

WORDS, TOKENS = 50, 8
PEAK = "import resource, sys; from causalmad.cli.app import app\ntry:\n    app(sys.argv[1:])\nfinally:\n"
PEAK += "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)"


def prepare(folder: Path) -> None:
    """A tiny model and a detector of it."""
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": TOKENS, "vocab_size": WORDS}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    model.save_pretrained(folder / "model")
    trusted = {"input_ids": torch.randint(1, WORDS, (400, TOKENS))}
    cm.Detector(cm.signatures.Activations()).fit(model, trusted).save(folder / "det")


def measure(folder: Path, count: int, ids: bool, cache: bool) -> tuple[int, float]:
    """The most memory (bytes) that ``detect`` held on ``count`` lines, and how long it took (seconds)."""
    command = [sys.executable, "-c", PEAK, "detect", str(folder / "det"), "-", "--model", str(folder / "model")]
    command += ["--reasons", "none", "--quiet", "--out", str(folder / "flags.jsonl")]
    command += ["--cache", str(folder / f"cache-{count}")] if cache else []
    draw = random.Random(count)
    started = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stderr is not None
        for number in range(count):
            tokens = [draw.randrange(1, WORDS) for _ in range(TOKENS)]
            name = f'"id": "input {number}", ' if ids else ""
            process.stdin.write(f'{{{name}"input_ids": {tokens}}}\n')
        process.stdin.close()
        said = process.stderr.read()
    seconds = time.perf_counter() - started
    with (folder / "flags.jsonl").open() as file:
        written = sum(1 for _ in file)
    if process.returncode or written != count:
        raise SystemExit(f"detect failed on {count} lines, {written} written: {said}")
    return int(said.split()[-1]), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--ids", action="store_true", help="lines with an id; without, ids are content hashes")
    parser.add_argument("--cache", action="store_true", help="with --cache")
    parser.add_argument("--write", action="store_true", help="put the claim into results.json")
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for count in options.lines:
            peak, seconds = measure(folder, count, options.ids, options.cache)
            runs.append({"lines": count, "peak_bytes": peak, "seconds": round(seconds, 1)})
            first = runs[0]
            more = (peak - first["peak_bytes"]) / max(count - first["lines"], 1)
            print(
                f"{count:>9,} lines: {peak / 2**20:7.1f} MiB, {more:6.1f} bytes a further line, {seconds:6.1f} s",
                flush=True,
            )
    growth = runs[-1]["peak_bytes"] / runs[0]["peak_bytes"] - 1
    kind = ("lines with ids" if options.ids else "lines without ids") + (", with a cache" if options.cache else "")
    what = f"memory of detect, {runs[-1]['lines']:,} lines over {runs[0]['lines']:,}, growth ({kind})"
    if options.write:
        setting = "activations of a GPT-2 of one layer of width 8, 8 tokens a line, --reasons none"
        write_claim(what, [growth], 0.1, setting=setting, curve=runs)
    else:
        print(f"{what}: {growth:.4f}")


if __name__ == "__main__":
    main()
