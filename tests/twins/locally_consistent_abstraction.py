"""Locally consistent abstractions trained with Gram-Schmidt and Adam written out, and read one input at a time."""

import math

import numpy as np
import torch


def whitened(values, most, floor=1e-3):
    """Mean, and principal directions each over its standard deviation, from the covariance."""
    mean = values.mean(0)
    covariance = (values - mean).T @ (values - mean) / len(values)
    variances, directions = np.linalg.eigh(covariance)
    order = np.argsort(-variances)
    kept = [i for i in order if variances[i] > floor**2 * variances[order[0]]][:most]
    columns = []
    for i in kept:
        direction = directions[:, i]
        columns.append(direction / math.sqrt(variances[i]))
    return mean, np.stack(columns, 1)


def gram_schmidt(free):
    columns = []
    for column in free.T:
        for other in columns:
            column = column - (column @ other) * other
        columns.append(column / column.norm())
    return torch.stack(columns, 1)


def predicted(step, abstract):
    """What a step makes of one abstraction."""
    hidden = [max(float(abstract @ step["inner"][:, j] + step["offset"][j]), 0.0) for j in range(len(step["offset"]))]
    found = []
    for k in range(len(step["bias"])):
        linear = sum(float(abstract[i] * step["weights"][i, k]) for i in range(len(abstract)))
        found.append(linear + float(step["bias"][k]) + sum(h * float(step["out"][j, k]) for j, h in enumerate(hidden)))
    return found


def row(values, logs, maps, steps):
    """Columns of one input, from its activations per layer and its log-probabilities."""
    abstract = [(torch.as_tensor(v) - mean) @ made for v, (mean, made) in zip(values, maps)]
    found = []
    for i in range(len(abstract) - 1):
        guess = predicted(steps[i], abstract[i])
        found.append(sum((g - float(a)) ** 2 for g, a in zip(guess, abstract[i + 1])) / len(guess))
    guess = predicted(steps[-1], abstract[-1])
    total = math.log(sum(math.exp(g) for g in guess))
    found.append(sum(math.exp(p) * (p - (g - total)) for p, g in zip(logs, guess)))
    return found


def lumped(logs, classes):
    """Log-probabilities of the classes; -1 is all others together."""
    others = [math.exp(value) for i, value in enumerate(logs) if i not in classes]
    return [math.log(sum(others)) if c == -1 else logs[c] for c in classes]


def trained(values, logs, size, steps):
    """Linear steps (without hidden units) on all inputs at once; maps and steps as the signature has them."""
    n = len(logs)
    bases = [whitened(value, min(n // 4, 4 * size)) for value in values]
    white = [torch.from_numpy((value - mean) @ basis) for value, (mean, basis) in zip(values, bases)]
    logs = torch.from_numpy(logs)
    usual = logs.exp().mean(0).log()

    def divergence(guess):
        return sum((p.exp() * (p - g)).sum() for p, g in zip(logs, guess)) / n

    scale = float(divergence(usual.expand_as(logs)))
    sizes = [min(part.shape[1], size) for part in white]
    leaves = [torch.eye(part.shape[1], k, dtype=torch.float64) for part, k in zip(white, sizes)]
    for before, after in zip(sizes, [*sizes[1:], logs.shape[1]]):
        leaves += [torch.zeros(before, after, dtype=torch.float64), torch.zeros(after, dtype=torch.float64)]
    leaves[-1] = usual.clone()
    leaves = [leaf.requires_grad_(True) for leaf in leaves]
    layers = len(white)
    first = [torch.zeros_like(leaf) for leaf in leaves]
    second = [torch.zeros_like(leaf) for leaf in leaves]
    for t in range(steps):
        abstract = [part @ gram_schmidt(leaf) for part, leaf in zip(white, leaves)]
        guesses = [a @ leaves[layers + 2 * i] + leaves[layers + 2 * i + 1] for i, a in enumerate(abstract)]
        loss = divergence(guesses[-1].log_softmax(1)) / scale
        for guess, truth in zip(guesses, abstract[1:]):
            loss = loss + ((guess - truth) ** 2).mean()
        slopes = torch.autograd.grad(loss, leaves)
        with torch.no_grad():
            for leaf, slope, mean, square in zip(leaves, slopes, first, second):
                mean.copy_(0.9 * mean + 0.1 * slope)
                square.copy_(0.999 * square + 0.001 * slope**2)
                size_ = (square / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8
                leaf -= 0.01 * (1 - t / steps) * mean / (1 - 0.9 ** (t + 1)) / size_
    leaves = [leaf.detach() for leaf in leaves]
    maps = [
        (torch.from_numpy(mean), torch.from_numpy(basis) @ gram_schmidt(leaf))
        for (mean, basis), leaf in zip(bases, leaves)
    ]
    none = {"offset": torch.zeros(0)}
    made = [{"weights": leaves[layers + 2 * i], "bias": leaves[layers + 2 * i + 1], **none} for i in range(layers)]
    for step in made:
        step["inner"], step["out"] = torch.zeros(len(step["weights"]), 0), torch.zeros(0, len(step["bias"]))
    return maps, made
