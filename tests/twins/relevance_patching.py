"""Relevance patching as it is defined: forward passes written out from the weights, with `detach` where a rule says so.

Inputs are single rows, never padded. Each forward returns its logits and the activations that are attributed to, by the
path of the module whose output they are, or `path:input`.
"""

import torch
from torch.nn import functional as F


def layer_norm(x, part):
    centred = x - x.mean(-1, keepdim=True)
    size = (centred.square().mean(-1, keepdim=True) + part.eps).sqrt().detach()
    return centred / size * part.weight + part.bias


def rms_norm(x, part):
    size = (x.square().mean(-1, keepdim=True) + part.variance_epsilon).sqrt().detach()
    return x / size * part.weight


def identity_rule(x, function):
    return x * (function(x) / x).detach()


def half_rule(product):
    return product / 2 + (product / 2).detach()


def attention(q, k, v, width):
    """(positions, width) of one head, its pattern constant; no position sees a later one."""
    scores = q @ k.T / width**0.5
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1).detach() @ v


def mlp(model, row):
    """The toy: linear, ReLU, (dropout), linear, tanh, linear."""
    x = row.clone().requires_grad_(True)
    first = identity_rule(model[0](x), torch.relu)
    second = identity_rule(model[3](first), torch.tanh)
    return model[5](second), {":input": x, "1": first, "4": second}


def gpt2(model, row):
    parts, seen = model.transformer, {}
    heads, width = model.config.n_head, model.config.n_embd // model.config.n_head
    tokens = seen["transformer.wte"] = parts.wte.weight[row].detach().requires_grad_(True)
    h = tokens + parts.wpe.weight[: len(row)]
    for layer, block in enumerate(parts.h):
        path = f"transformer.h.{layer}"
        made = layer_norm(h, block.ln_1) @ block.attn.c_attn.weight + block.attn.c_attn.bias
        q, k, v = (part.reshape(len(row), heads, width) for part in made.split(heads * width, -1))
        z = torch.cat([attention(q[:, i], k[:, i], v[:, i], width) for i in range(heads)], -1)
        seen[f"{path}.attn.c_proj:input"] = z
        h = h + z @ block.attn.c_proj.weight + block.attn.c_proj.bias
        inner = layer_norm(h, block.ln_2) @ block.mlp.c_fc.weight + block.mlp.c_fc.bias
        active = identity_rule(inner, lambda x: F.gelu(x, approximate="tanh"))
        written = seen[f"{path}.mlp"] = active @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
        h = seen[path] = h + written
    return (layer_norm(h, parts.ln_f) @ model.lm_head.weight.T)[-1], seen


def llama(model, row):
    parts, seen = model.model, {}
    heads, width = model.config.num_attention_heads, model.config.head_dim
    shared = heads // model.config.num_key_value_heads
    frequency = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angle = torch.arange(len(row))[:, None] * torch.cat([frequency, frequency])

    def turned(x):
        left, right = x.chunk(2, -1)
        return x * angle.cos() + torch.cat([-right, left], -1) * angle.sin()

    h = seen["model.embed_tokens"] = parts.embed_tokens.weight[row].detach().requires_grad_(True)
    for layer, block in enumerate(parts.layers):
        path = f"model.layers.{layer}"
        x, own = rms_norm(h, block.input_layernorm), block.self_attn
        z = []
        for i in range(heads):
            a, b = slice(i * width, (i + 1) * width), slice(i // shared * width, (i // shared + 1) * width)
            q, k, v = x @ own.q_proj.weight[a].T, x @ own.k_proj.weight[b].T, x @ own.v_proj.weight[b].T
            z.append(attention(turned(q), turned(k), v, width))
        z = seen[f"{path}.self_attn.o_proj:input"] = torch.cat(z, -1)
        h = h + z @ own.o_proj.weight.T
        x = rms_norm(h, block.post_attention_layernorm)
        gate = identity_rule(x @ block.mlp.gate_proj.weight.T, F.silu)
        product = half_rule(gate * (x @ block.mlp.up_proj.weight.T))
        written = seen[f"{path}.mlp"] = product @ block.mlp.down_proj.weight.T
        h = seen[path] = h + written
    return (rms_norm(h, parts.norm) @ model.lm_head.weight.T)[-1], seen


FORWARDS = {"mlp": mlp, "gpt2": gpt2, "llama": llama}


def contributions(name, model, row, baselines, target):
    """Place -> relevance times the distance from the baseline (place -> value, zero where there is none)."""
    logits, seen = FORWARDS[name](model, row)
    grads = torch.autograd.grad(target(logits), list(seen.values()))
    moved = {place: value.detach() - baselines.get(place, 0.0) for place, value in seen.items()}
    return {place: grad * moved[place] for place, grad in zip(seen, grads)}
