"""Claim: exact patching of every head costs at most 0.35 of a full forward pass for each head.

Every head of every layer in turn is replaced by another input's, and the change of the output is measured: by the calls
of which ``ExactAblation`` is made (the donor's run and the clean run included), beside full forward passes with a hook
for each head. A round takes one layer, so that every twelve rounds make a whole. ``--peers`` times a pyvene loop, an
nnsight loop and, where it is installed, a transformer-lens loop beside it (a head costs them the same in every layer).

    OMP_NUM_THREADS=1 python benchmarks/speed/exact_patching.py [--size gpt2-small] [--rounds 12] [--peers]
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from statistics import mean
from typing import Any

import torch
from lens import hooked_transformer
from side_by_side import SHAPES, bare, call, claim, opened, side_by_side, tokens

from causalmad import Inputs
from causalmad.hypotheses import Donors
from causalmad.signatures.effects import Resampler
from causalmad.signatures.exact_ablation import over_donors
from causalmad.signatures.units import Group, groups
from causalmad.targets import TopMargin


def hooked(module: Any, kwargs: dict[str, Any], values: dict[int, torch.Tensor], layer: int, head: int) -> Any:
    """One full forward pass with one head replaced, by a plain hook."""
    size = module.config.n_embd // module.config.n_head

    def replace(_: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        value = args[0].clone()
        value[..., head * size : (head + 1) * size] = values[layer][..., head * size : (head + 1) * size]
        return (value,)

    handle = module.transformer.h[layer].attn.c_proj.register_forward_pre_hook(replace)
    try:
        with torch.no_grad():
            return module(**kwargs).logits
    finally:
        handle.remove()


def captured(module: Any, kwargs: dict[str, Any]) -> dict[int, torch.Tensor]:
    """Layer -> what goes into its output projection."""
    found: dict[int, torch.Tensor] = {}
    handles = [
        block.attn.c_proj.register_forward_pre_hook(lambda _, args, layer=layer: found.update({layer: args[0]}))
        for layer, block in enumerate(module.transformer.h)
    ]
    try:
        bare(module, kwargs)()
    finally:
        for handle in handles:
            handle.remove()
    return found


def pyvene_loop(module: Any, kwargs: dict[str, Any], sources: dict[str, Any], pairs: list[tuple[int, int]]) -> Any:
    """A pyvene model for every head, run with its source: what its documentation shows."""
    import pyvene

    rows, length = kwargs["input_ids"].shape
    everywhere = [[[[head]] * rows, [list(range(length))] * rows] for _, head in pairs]
    asked = {name: value for name, value in kwargs.items() if isinstance(value, torch.Tensor)}
    found = []
    for (layer, _), place in zip(pairs, everywhere, strict=True):
        wanted = pyvene.RepresentationConfig(layer, "head_attention_value_output", "h.pos", 1)
        config = pyvene.IntervenableConfig([wanted], pyvene.VanillaIntervention)
        one = pyvene.IntervenableModel(config, module)
        with torch.no_grad():
            found.append(one(asked, [sources], {"sources->base": ([place], [place])})[1].logits[:, -1])
    return found


def nnsight_loop(
    module: Any, kwargs: dict[str, Any], values: dict[int, torch.Tensor], pairs: list[tuple[int, int]]
) -> Any:
    """A trace for every head."""
    import nnsight

    model = nnsight.NNsight(module)
    size = module.config.n_embd // module.config.n_head
    found = []
    for layer, head in pairs:
        with torch.no_grad(), model.trace(**kwargs):
            value = model.transformer.h[layer].attn.c_proj.input.clone()
            value[..., head * size : (head + 1) * size] = values[layer][..., head * size : (head + 1) * size]
            model.transformer.h[layer].attn.c_proj.input = value
            found.append(model.output.logits[:, -1].save())
    return found


def lens_loop(other: Any, ids: torch.Tensor, values: dict[int, torch.Tensor], pairs: list[tuple[int, int]]) -> Any:
    """A run of a HookedTransformer with a hook for every head: what transformer-lens's own patching does."""
    found = []
    for layer, head in pairs:

        def replace(value: torch.Tensor, hook: Any, layer: int = layer, head: int = head) -> torch.Tensor:
            value[:, :, head] = values[layer].unflatten(-1, (value.shape[2], -1))[:, :, head]
            return value

        with torch.no_grad():
            name = f"blocks.{layer}.attn.hook_z"
            found.append(other.run_with_hooks(ids, return_type="logits", fwd_hooks=[(name, replace)])[:, -1])
    return found


def main() -> None:
    """Measure, and record."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--size", choices=list(SHAPES), default="gpt2-small")
    options.add_argument("--rounds", type=int, default=12)
    options.add_argument("--peers", action="store_true", help="time the loops of pyvene and nnsight")
    options.add_argument("--full", type=int, default=2, help="plain patched forward passes timed in a round")
    given = options.parse_args()
    module, model = opened(given.size)
    inputs, others = tokens(module, 16), tokens(module, 4, seed=1)
    donors = Donors.draw(others, 1, 0)
    kwargs = call(model, inputs)
    source = call(model, Inputs.of({"input_ids": [donors.inputs.main[0]] * 16}))
    values = captured(module, source)
    layers, heads = module.config.n_layer, module.config.n_head
    if given.rounds % layers:
        options.error(
            f"--rounds {given.rounds}: a round takes one of {layers} layers, and early ones cost more than late"
        )
    (group,) = groups(model, inputs, "heads")
    which = torch.as_tensor(donors.of(inputs))
    (batch,) = model.batches(inputs)
    now: dict[str, Any] = {}

    def before(turn: int) -> None:
        layer = turn % layers
        part = slice(layer * heads, (layer + 1) * heads)
        now["group"] = Group(group.name, group.names[part], group.sites[part])
        now["pairs"] = [(layer, (turn + 5 * i) % heads) for i in range(given.full)]

    def begin() -> None:
        now["resampler"] = Resampler.of(model, donors, TopMargin(), (group,))
        with model.quiet():
            now["start"] = now["resampler"].start(batch)

    def layer() -> Any:
        with model.quiet():
            return over_donors(now["resampler"].effects(now["start"], which, now["group"]))

    sides: dict[str, Any] = {
        "begin": begin,
        "layer": layer,
        "full": lambda: [hooked(module, kwargs, values, *pair) for pair in now["pairs"]],
    }
    if given.peers:
        sides["pyvene"] = lambda: pyvene_loop(module, kwargs, source, now["pairs"][:1])
        sides["nnsight"] = lambda: nnsight_loop(module, kwargs, values, now["pairs"][:1])
    if given.peers and find_spec("transformer_lens"):
        other = hooked_transformer(module)
        sides["transformer-lens"] = lambda: lens_loop(other, kwargs["input_ids"], values, now["pairs"][:1])
    before(0)
    begin()
    plain = [hooked(module, kwargs, values, 0, head)[:, -1] for head in range(2)]
    agree(layer(), plain, now["start"])
    if "transformer-lens" in sides:
        lens = lens_loop(other, kwargs["input_ids"], values, [(0, 0), (0, 1)])
        agree(layer(), lens, now["start"])
    times = side_by_side(sides, given.rounds, warm=0, before=before)
    count = layers * heads
    each = {}
    for clock in ("wall", "cpu"):
        begin_s, layer_s, full_s = (times[side][clock] for side in ("begin", "layer", "full"))
        each[clock] = [
            own / heads / (full / given.full) + first / count / (full / given.full)
            for own, first, full in zip(layer_s, begin_s, full_s, strict=True)
        ]
    setting, whole = SHAPES[given.size], "one layer"
    note = f"{given.full} full forward passes timed in each round; the runs of the donor and of the inputs included"
    name = f"exact patching of all {count} heads / {count} full forward passes"
    limit = 0.35 if given.size == "gpt2-small" else None
    claim(f"{name} ({given.size})", each, limit, setting=setting, note=note, each=whole)
    for peer, limit in (("pyvene", 5.0), ("nnsight", 2.5), ("transformer-lens", None)):
        if peer not in sides:
            continue
        inverse = {}
        for clock, own in each.items():
            loop = [a / (b / given.full) for a, b in zip(times[peer][clock], times["full"][clock], strict=True)]
            inverse[clock] = [a / mean(own) for a in loop]
        note = "one head of the loop timed in each round; ours over all layers"
        known = limit if given.size == "gpt2-small" else None
        claim(
            f"{peer} loop over all {count} heads / ours ({given.size})",
            inverse,
            known,
            at_least=True,
            setting=setting,
            note=note,
        )


def agree(ours: dict[str, torch.Tensor], plain: list[torch.Tensor], start: Any) -> None:
    """The first heads' effects are those of the plain runs."""
    read = TopMargin().bind(start.logits)
    for head, logits in enumerate(plain):
        wanted = read(logits.double()) - start.read
        torch.testing.assert_close(ours["margin"][:, head], wanted, atol=1e-4, rtol=1e-3)


if __name__ == "__main__":
    main()
