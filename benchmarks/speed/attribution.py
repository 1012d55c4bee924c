"""Claim: first-order attribution of all heads and MLPs costs at most 1.7 bare forward passes, and far less than captum.

Ours is the whole signature (``AttributionPatching`` with a zero baseline, for captum's numbers). captum's
``LayerGradientXActivation`` gives the same contributions in two calls (inputs of the output projections, outputs of the
MLPs), or in a call for each of the layers, of which one is timed in each round and multiplied. By hand, with frozen
parameters, plain hooks, the last position's logits, one backward pass and nothing else, stands beside it; there all
positions are run behind the last attention, too.

    OMP_NUM_THREADS=1 python benchmarks/speed/attribution.py [--size gpt2-small] [--rounds 10]
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from captum.attr import LayerGradientXActivation
from side_by_side import SHAPES, bare, call, claim, opened, ratios, side_by_side, tokens

from causalmad.signatures import AttributionPatching
from causalmad.targets import TopMargin


def by_hand(module: Any, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The contributions of every entry, summed over positions: the same in the fewest steps."""
    values: dict[Any, torch.Tensor] = {}

    def before(part: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        values[part] = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
        return (values[part],)

    def after(part: Any, _: Any, result: torch.Tensor) -> None:
        values[part] = result

    blocks = module.transformer.h
    handles = [block.attn.c_proj.register_forward_pre_hook(before) for block in blocks]
    handles += [block.mlp.register_forward_hook(after) for block in blocks]
    try:
        logits = module(**kwargs, logits_to_keep=1).logits[:, -1]
    finally:
        for handle in handles:
            handle.remove()
    slopes = torch.autograd.grad(TopMargin().bind(logits)(logits).sum(), list(values.values()))
    return [(slope * value).sum(1) for slope, value in zip(slopes, values.values(), strict=True)]


def main() -> None:
    """Measure, and record."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--size", choices=list(SHAPES), default="gpt2-small")
    options.add_argument("--rounds", type=int, default=10)
    given = options.parse_args()
    module, model = opened(given.size)
    inputs = tokens(module, 16)
    kwargs = call(model, inputs)
    spec = AttributionPatching(("heads", "mlps"), baseline="zero", normalise=False, log=False)
    fitted = spec.fit(model, tokens(module, 16, seed=1))
    projections = [block.attn.c_proj for block in module.transformer.h]
    mlps = [block.mlp for block in module.transformer.h]
    top = model.logits(next(model.batches(inputs))).argmax(-1)

    def scalar(ids: torch.Tensor) -> torch.Tensor:
        logits = module(**{**kwargs, "input_ids": ids}).logits[:, -1]
        chosen = logits.gather(-1, top[:, None]).squeeze(-1)
        return chosen - logits.scatter(-1, top[:, None], float("-inf")).logsumexp(-1)

    def captum(layers: Any, inputs_of: bool) -> Any:
        method = LayerGradientXActivation(scalar, layers)
        return method.attribute(kwargs["input_ids"], attribute_to_layer_input=inputs_of)

    turn = {"now": 0}
    frozen = copy.deepcopy(module).requires_grad_(False)
    sides = {
        "bare": bare(module, kwargs),
        "ours": lambda: fitted(inputs),
        "by hand": lambda: by_hand(frozen, kwargs),
        "captum": lambda: [captum(projections, True), captum(mlps, False)],
        "captum call": lambda: captum(projections[turn["now"] % len(projections)], True),
    }
    agree(fitted, inputs, captum(projections, True), module.config.n_head)
    times = side_by_side(
        sides,
        given.rounds,
        repeat=1 if given.size == "gpt2-small" else 5,
        before=lambda number: turn.update(now=number),
    )
    setting, big = SHAPES[given.size], given.size == "gpt2-small"
    title = f"first-order attribution of all heads and MLPs / bare forward pass ({given.size})"
    claim(title, ratios(times, "ours", "bare"), 1.7, setting=setting, note="the whole signature")
    title = f"the same attribution by hand / bare forward pass ({given.size})"
    claim(title, ratios(times, "by hand", "bare"), None, setting=setting, note="contributions alone, at every position")
    title = f"captum LayerGradientXActivation in two calls / ours ({given.size})"
    claim(title, ratios(times, "captum", "ours"), 2.5, at_least=True, setting=setting)
    calls = 2 * module.config.n_layer
    each = {k: [x * calls for x in v] for k, v in ratios(times, "captum call", "ours").items()}
    title = f"captum LayerGradientXActivation, a call per layer / ours ({given.size})"
    note = f"one of {calls} calls timed in each round and multiplied"
    claim(title, each, 10.0 if big else None, at_least=True, setting=setting, note=note)


def agree(fitted: Any, inputs: Any, captum: Any, heads: int) -> None:
    """Both give the same contributions of heads."""
    assert isinstance(fitted.spec.target, TopMargin)
    found = fitted.reduced(inputs)
    ours = found.values[:, [i for i, column in enumerate(found.columns) if column.block.startswith("heads sum")]]
    theirs = torch.cat([value.detach().unflatten(-1, (heads, -1)).sum((1, 3)) for value in captum], 1)
    torch.testing.assert_close(torch.from_numpy(ours).float(), theirs, atol=1e-4, rtol=1e-3)


if __name__ == "__main__":
    main()
