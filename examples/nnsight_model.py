"""A detector beside an nnsight model: the same scores through plain hooks and through nnsight's traces."""

from __future__ import annotations

import numpy as np
import torch
from nnsight import NNsight
from transformers import GPT2Config, GPT2LMHeadModel

import causalmad as cm


def main() -> None:
    """Attribution patching of the heads of a small GPT-2, whichever engine runs it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(
            n_layer=2, n_head=4, n_embd=32, vocab_size=64, n_positions=16, bos_token_id=0, eos_token_id=0
        )
        model = NNsight(GPT2LMHeadModel(config).eval())
    draw = np.random.default_rng(0)
    prompts = [{"input_ids": draw.integers(1, 64, draw.integers(4, 12)).tolist()} for _ in range(120)]
    detector = cm.Detector(cm.signatures.AttributionPatching("heads", target=cm.targets.TopMargin()))
    scores = {}
    for engine in ("hooks", "nnsight"):
        fitted = detector.fit(cm.open_model(model, engine=engine), prompts[:100], seed=0)
        scores[engine] = fitted.score(prompts[100:])
        print(f"{engine:8s} {np.round(scores[engine][:5], 3)}")
    fitted.detect(prompts[100:], alpha=0.1).explain(3).show(5)
    if not np.allclose(scores["hooks"], scores["nnsight"], rtol=1e-3):
        raise SystemExit("the two engines should agree")


if __name__ == "__main__":
    main()
