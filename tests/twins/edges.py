"""Transformers written out head by head, every receiver reading an explicit sum: edge patching as the papers put it.

One row at a time, no batches, no hooks. ``read(sender, receiver, value)`` says what a receiver reads of a sender.
"""

import math

import torch


def is_llama(model):
    return hasattr(model, "model")


def split(model, layer):
    """Norms, MLP, and per head the maps: {(head, role): (W (in, out), b)}, output maps, output bias, groups."""
    config = model.config
    heads, width = config.num_attention_heads, config.hidden_size
    size = width // heads
    maps, out = {}, {}
    if hasattr(model, "transformer"):
        block = model.transformer.h[layer]
        norms, mlp = (block.ln_1, block.ln_2), block.mlp
        W, b = block.attn.c_attn.weight, block.attn.c_attn.bias
        for i, role in enumerate("qkv"):
            for h in range(heads):
                cut = slice(i * width + h * size, i * width + (h + 1) * size)
                maps[h, role] = W[:, cut], b[cut]
        joined, bias = block.attn.c_proj.weight, block.attn.c_proj.bias
    elif hasattr(model, "gpt_neox"):
        block = model.gpt_neox.layers[layer]
        norms, mlp = (block.input_layernorm, block.post_attention_layernorm), block.mlp
        W, b = block.attention.query_key_value.weight.T, block.attention.query_key_value.bias
        for h in range(heads):
            for i, role in enumerate("qkv"):
                cut = slice((3 * h + i) * size, (3 * h + i + 1) * size)
                maps[h, role] = W[:, cut], b[cut]
        joined, bias = block.attention.dense.weight.T, block.attention.dense.bias
    else:
        block = model.model.layers[layer]
        norms, mlp = (block.input_layernorm, block.post_attention_layernorm), block.mlp
        share = heads // config.num_key_value_heads
        for h in range(heads):
            for role, projection, i in (
                ("q", block.self_attn.q_proj, h),
                ("k", block.self_attn.k_proj, h // share),
                ("v", block.self_attn.v_proj, h // share),
            ):
                maps[h, role] = projection.weight.T[:, i * size : (i + 1) * size], torch.zeros(size)
        joined, bias = block.self_attn.o_proj.weight.T, torch.zeros(width)
    for h in range(heads):
        out[h] = joined[h * size : (h + 1) * size]
    return norms, mlp, maps, out, bias


def embed(model, ids):
    if hasattr(model, "transformer"):
        return model.transformer.wte(ids) + model.transformer.wpe(torch.arange(len(ids)))
    return model.gpt_neox.embed_in(ids) if hasattr(model, "gpt_neox") else model.model.embed_tokens(ids)


def rotate(model, x):
    """Rotary positions on (positions, size)."""
    if hasattr(model, "transformer"):
        return x
    body = model.model if is_llama(model) else model.gpt_neox
    cos, sin = (part[0] for part in body.rotary_emb(x[None], torch.arange(len(x))[None]))
    n = cos.shape[-1]
    turned, rest = x[:, :n], x[:, n:]
    half = torch.cat([-turned[:, n // 2 :], turned[:, : n // 2]], -1)
    return torch.cat([turned * cos + half * sin, rest], -1)


def attend(model, q, k, v):
    scores = rotate(model, q) @ rotate(model, k).T / math.sqrt(q.shape[-1])
    future = torch.ones_like(scores).triu(1).bool()
    return scores.masked_fill(future, float("-inf")).softmax(-1) @ v


def final(model):
    if hasattr(model, "transformer"):
        return model.transformer.ln_f, model.lm_head
    if is_llama(model):
        return model.model.norm, model.lm_head
    return model.gpt_neox.final_layer_norm, model.get_output_embeddings()


def parallel(model):
    return hasattr(model, "gpt_neox") and model.config.use_parallel_residual


def forward(model, ids, read=None, write=None):
    """Logits at the last position, and sender -> (positions, width) what it wrote.

    Args:
        model: GPT-2, GPT-NeoX or Llama.
        ids: (positions,) tokens.
        read: (sender, receiver, value) -> what the receiver reads of it.
        write: (sender, value) -> what the sender writes.
    """
    read = read or (lambda sender, receiver, value: value)
    write = write or (lambda sender, value: value)
    z = {"input": write("input", embed(model, ids))}
    constant = torch.zeros(model.config.hidden_size)
    config = model.config
    share = config.num_attention_heads // (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)

    def stream(receiver, senders, bias):
        return sum(read(sender, receiver, z[sender]) for sender in senders) + bias

    for layer in range(config.num_hidden_layers):
        norms, mlp, maps, out, bias = split(model, layer)
        upstream, before = list(z), constant
        for h in range(config.num_attention_heads):
            made = {}
            for role in "qkv":
                name = f"a{layer}.h{h}<{role}>"
                if role != "q" and share > 1:
                    name = f"a{layer}.g{h // share}<{role}>"
                W, b = maps[h, role]
                made[role] = norms[0](stream(name, upstream, before)) @ W + b
            sender = f"a{layer}.h{h}"
            z[sender] = write(sender, attend(model, made["q"], made["k"], made["v"]) @ out[h])
        constant = constant + bias
        seen, known = (upstream, before) if parallel(model) else (list(z), constant)
        z[f"m{layer}"] = write(f"m{layer}", mlp(norms[1](stream(f"m{layer}", seen, known))))
    norm, head = final(model)
    return head(norm(stream("logits", list(z), constant)))[-1], z


def edges_of(model, ids):
    """Every (sender, receiver) in the order in which receivers read."""
    found = []
    forward(model, ids, read=lambda s, r, v: found.append((s, r)) or v)
    return list(dict.fromkeys(found))


def patch(model, ids, donor, edges):
    """Logits when these edges carry the donor's values."""
    _, values = forward(model, donor)
    return forward(model, ids, read=lambda s, r, v: values[s] if (s, r) in edges else v)[0]


def margin(logits, top):
    return logits[top] - torch.cat([logits[:top], logits[top + 1 :]]).logsumexp(-1)


def kl(clean, other):
    p, q = clean.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum()


def gradients(model, ids, top, write=None):
    """Edge -> gradient of the margin with respect to what the receiver reads of the sender: a zero is added there."""
    zeros = {}

    def read(sender, receiver, value):
        zero = zeros.setdefault((sender, receiver), torch.zeros_like(value, requires_grad=True))
        return value.detach() * 0 + value + zero

    logits, _ = forward(model, ids, read, write)
    # Queries and keys whose scores cannot matter (one position) have no gradient.
    slopes = torch.autograd.grad(margin(logits, top), list(zeros.values()), allow_unused=True)
    return {edge: 0 if slope is None else slope for edge, slope in zip(zeros, slopes, strict=True)}


def eap(model, ids, donor):
    """Syed, Rager and Conmy 2023: (donor - clean) . gradient, for every edge."""
    (logits, clean), (_, other) = forward(model, ids), forward(model, donor)
    slopes = gradients(model, ids, int(logits.argmax()))
    return {(s, r): float(((other[s] - clean[s]) * slope).sum().detach()) for (s, r), slope in slopes.items()}


def eap_ig(model, ids, donor, steps):
    """Hanna, Pezzelle and Belinkov 2024: the gradient averaged over inputs donor + k/m (clean - donor), k = 1..m."""
    (logits, clean), (_, other) = forward(model, ids), forward(model, donor)
    total = dict.fromkeys(edges_of(model, ids), 0.0)
    for k in range(1, steps + 1):
        point = other["input"] + k / steps * (clean["input"] - other["input"])
        slopes = gradients(model, ids, int(logits.argmax()), lambda s, v, point=point: point if s == "input" else v)
        for (s, r), slope in slopes.items():
            total[s, r] += float(((other[s] - clean[s]) * slope).sum().detach()) / steps
    return total


def eap_ig_activations(model, ids, donor, steps):
    """The same with the activations of one part at a time interpolated, for the edges out of that part."""
    (logits, clean), (_, other) = forward(model, ids), forward(model, donor)
    total = dict.fromkeys(edges_of(model, ids), 0.0)
    for part in dict.fromkeys(sender.partition(".")[0] for sender in clean):
        for k in range(1, steps + 1):

            def write(sender, value, part=part, k=k):
                if sender.partition(".")[0] != part:
                    return value
                return other[sender] + k / steps * (clean[sender] - other[sender])

            for (s, r), slope in gradients(model, ids, int(logits.argmax()), write).items():
                if s.partition(".")[0] == part:
                    total[s, r] += float(((other[s] - clean[s]) * slope).sum().detach()) / steps
    return total


def acdc(model, rows, donors, threshold):
    """Conmy et al. 2023: the edges that stay, receivers from last to first, by the rise of the divergence."""
    edges = edges_of(model, rows[0])
    # Within a layer: queries of all heads, then keys, then values.
    receivers = list(dict.fromkeys(r for _, r in edges))
    parts = list(dict.fromkeys(r.partition(".")[0] for r in receivers))
    receivers.sort(key=lambda r: (parts.index(r.partition(".")[0]), "qkv".find(r[-2]) if "<" in r else 0))
    senders = list(dict.fromkeys(s for s, _ in edges))
    clean = [forward(model, ids)[0] for ids in rows]

    def loss(removed):
        found = [kl(c, patch(model, x, d, removed)) for c, x, d in zip(clean, rows, donors, strict=True)]
        return float(sum(found) / len(found))

    removed, now = set(), 0.0
    for receiver in reversed(receivers):
        for sender in reversed(senders):
            if (sender, receiver) in edges:
                new = loss(removed | {(sender, receiver)})
                if new - now < threshold:
                    removed, now = removed | {(sender, receiver)}, new
    return set(edges) - removed


def path(model, ids, donor, sender, receivers, through_mlps=False):
    """Goldowsky-Dill et al. 2023, Wang et al. 2022: the logits when a sender reaches some receivers alone.

    (a) run clean; (b) run the donor; (c) run clean with the sender's value from the donor and every head frozen, MLPs
    frozen or not, and note what the receivers read; (d) run with the receivers reading that.
    """
    (_, clean), (_, other) = forward(model, ids), forward(model, donor)
    noted = {}

    def frozen(s, value):
        if s == sender:
            return other[s]
        return value if s.startswith("m") and through_mlps else clean[s]

    def note(s, r, value):
        if r in receivers:
            noted[s, r] = value
        return value

    forward(model, ids, note, frozen)
    return forward(model, ids, lambda s, r, value: value + noted[s, r] - clean[s] if r in receivers else value)[0]
