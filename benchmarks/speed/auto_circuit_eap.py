"""Claim: edge attribution of every input is at least twice as fast as auto-circuit's of the whole batch.

Both have one donor an input, all edges, heads with q, k and v apart, and the logit of the clean answer. auto-circuit
adds up the scores over the batch, ours are input by input: their sum has to be auto-circuit's. auto-circuit needs an
environment of its own, as benchmarks/requirements-auto-circuit.txt says.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/speed/auto_circuit_eap.py [--size gpt2-small] [--rounds 10]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch
from lens import hooked_transformer
from side_by_side import SHAPES, claim, opened, ratios, side_by_side, tokens

from causalmad import Inputs
from causalmad.hypotheses import Donors
from causalmad.hypotheses.edge_attribution import EdgeAttributor
from causalmad.hypotheses.edges import EdgePatcher
from causalmad.targets import as_target


def theirs(module: Any, clean: torch.Tensor, donor: torch.Tensor, answer: torch.Tensor) -> Callable[[], dict[str, Any]]:
    """auto-circuit's scores of the same model: receiver -> (senders), with everything that a call of it does."""
    from auto_circuit.data import PromptDataLoader, PromptDataset
    from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
    from auto_circuit.utils.graph_utils import patchable_model

    other = hooked_transformer(module)
    other.cfg.use_attn_result = other.cfg.use_split_qkv_input = other.cfg.use_hook_mlp_in = True
    wrapped = patchable_model(other, factorized=True, slice_output="last_seq", separate_qkv=True)
    rows = PromptDataset(list(clean), list(donor), list(answer[:, None]), list(answer[:, None]))
    loader = PromptDataLoader(rows, seq_len=None, diverge_idx=0, batch_size=len(clean), shuffle=False)

    def run() -> dict[str, Any]:
        with redirect_stderr(StringIO()):  # its progress bars
            return dict(mask_gradient_prune_scores(wrapped, loader, None, "logit", "avg_val", mask_val=0.0))

    return run


def main() -> None:
    """Measure, and record."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--size", choices=list(SHAPES), default="gpt2-small")
    options.add_argument("--rounds", type=int, default=10)
    given = options.parse_args()
    module, model = opened(given.size)
    inputs, others = tokens(module, 16), tokens(module, 16, seed=1)
    (batch,) = model.batches(inputs)
    which = torch.arange(16)[:, None]
    answer = model.logits(batch).argmax(-1)
    patcher = EdgePatcher.of(model, Donors(Inputs.of({"input_ids": list(others.main)}), 16))
    target = as_target(lambda logits: logits.gather(-1, answer[:, None]).squeeze(-1))
    attributor = EdgeAttributor(patcher, target, method="eap")

    def ours() -> torch.Tensor:
        return attributor.scores(batch, which)

    peer = theirs(module, batch.main, torch.stack(list(others.main)), answer)
    agree(ours(), peer(), len(inputs))
    big = given.size == "gpt2-small"
    times = side_by_side({"ours": ours, "auto-circuit": peer}, given.rounds, repeat=1 if big else 5)
    title = f"auto-circuit's EAP of a whole batch / ours of every input ({given.size})"
    limit = 2.0 if big else None
    note = "one donor an input; auto-circuit 1.0.1 with transformer-lens 2.18.0"
    claim(title, ratios(times, "auto-circuit", "ours"), limit, at_least=True, setting=SHAPES[given.size], note=note)


def agree(ours: torch.Tensor, peer: dict[str, Any], rows: int) -> None:
    """The sum over inputs is what auto-circuit gives, receiver by receiver."""
    mean, theirs_all = ours.sum(0), torch.cat([value.flatten() for value in peer.values()])
    mine = mean[mean != 0].abs().sort().values
    other = theirs_all[theirs_all != 0].abs().sort().values * rows
    torch.testing.assert_close(mine[-1000:].float(), other[-1000:].float(), rtol=2e-2, atol=1e-6)


if __name__ == "__main__":
    main()
