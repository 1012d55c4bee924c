"""AtP* of a GPT-2 in plain loops: one input, one softmax row at a time, gradients zeroed by hand.

Kramár, Lieberum, Shah, Nanda 2024, arXiv 2403.00745, sections 3.1 (QK fix) and 3.2 (GradDrop).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Node = tuple[str, int, int]  # kind, layer, head (0 for MLPs)


def run(
    model: Any,
    ids: Tensor,
    replaced: Mapping[Node, Callable[[Tensor], Tensor]] | None = None,
    dropped: int | None = None,
) -> tuple[Tensor, dict[Node, Tensor]]:
    """Logits (classes,) at the last token, and the value of every node (tokens, features) and pattern.

    Args:
        model: a GPT2LMHeadModel in eval mode.
        ids: (tokens,).
        replaced: node -> what its value becomes.
        dropped: a layer through whose contribution to the residual stream no gradient flows.
    """
    replaced, nodes = replaced or {}, {}

    def node(key: Node, value: Tensor) -> Tensor:
        nodes[key] = replaced[key](value) if key in replaced else value
        return nodes[key]

    body = model.transformer
    stream = body.wte.weight[ids] + body.wpe.weight[: len(ids)]
    for layer, block in enumerate(body.h):
        heads, width = block.attn.num_heads, stream.shape[1]
        size = width // heads
        q, k, v = block.attn.c_attn(block.ln_1(stream)[None])[0].split(width, dim=-1)
        parts = []
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            queries = node(("queries", layer, head), q[:, own] / size**0.5)
            keys = node(("keys", layer, head), k[:, own])
            values = node(("values", layer, head), v[:, own])
            rows = [row(queries[i], keys, i) for i in range(len(ids))]
            parts.append(node(("pattern", layer, head), torch.stack(rows)) @ values)
        attended = block.attn.c_proj(torch.cat(parts, -1)[None])[0]
        if dropped == layer and attended.requires_grad:
            attended.register_hook(torch.zeros_like)
        stream = stream + attended
        mlp = node(("mlps", layer, 0), block.mlp(block.ln_2(stream)))
        passed = mlp * 1.0
        if dropped == layer and passed.requires_grad:
            passed.register_hook(torch.zeros_like)
        stream = stream + passed
    return model.lm_head(body.ln_f(stream))[-1], nodes


def row(query: Tensor, keys: Tensor, position: int) -> Tensor:
    """One row of a causal pattern."""
    weights = torch.softmax(torch.stack([query @ keys[j] for j in range(position + 1)]), 0)
    return torch.cat([weights, weights.new_zeros(len(keys) - position - 1)])


def effects(
    model: Any, ids: Tensor, base: Mapping[Node, Tensor], target: Callable[[Tensor], Tensor], dropped: int | None = None
) -> dict[Node, list[float]]:
    """Node -> its effect at every token: target of the clean run minus that with the node at its baseline.

    Args:
        model: as for :func:`run`.
        ids: (tokens,).
        base: node -> (tokens, features) baseline of queries, keys, values and MLPs.
        target: from logits to a number.
        dropped: as for :func:`run`.
    """
    logits, nodes = run(model, ids, dropped=dropped)
    names = list(nodes)
    grads = torch.autograd.grad(target(logits), [nodes[name] for name in names], allow_unused=True)
    slope = {n: torch.zeros_like(nodes[n]) if g is None else g for n, g in zip(names, grads, strict=True)}
    found: dict[Node, list[float]] = {}
    with torch.no_grad():
        for name in names:
            kind, layer, head = name
            if kind == "pattern":
                continue
            found[name] = []
            queries, keys = (nodes.get((part, layer, head), torch.zeros(0)) for part in ("queries", "keys"))
            for t in range(len(ids)):
                if kind in ("values", "mlps"):
                    found[name].append(float((nodes[name][t] - base[name][t]) @ slope[name][t]))
                    continue
                pattern, down = nodes["pattern", layer, head], slope["pattern", layer, head]
                total = 0.0
                for i in range(len(ids)):
                    query, moved = queries[i], keys.clone()
                    if kind == "queries" and i == t:
                        query = base[name][t]
                    if kind == "keys":
                        moved[t] = base[name][t]
                    new = row(query, moved, i)
                    for j in range(len(ids)):
                        total += float((pattern[i, j] - new[j]) * down[i, j])
                found[name].append(total)
    return found


def graddrop(each: list[dict[Node, list[float]]]) -> dict[Node, float]:
    """Node -> sum over tokens of (1 / (L - 1)) sum over dropped layers of the absolute effect.

    Args:
        each: the effects with layer 0, 1, ..., L - 1 dropped.
    """
    return {
        name: sum(sum(abs(found[name][t]) for found in each) / (len(each) - 1) for t in range(len(each[0][name])))
        for name in each[0]
    }
