"""The score of a variational autoencoder, row by row in torch, with torch's own divergence of Gaussians."""

import torch
from torch.distributions import Normal, kl_divergence


def scores(rows, mean, scale, layers, beta):
    found = []
    for row in torch.tensor(rows):
        r = (row - torch.tensor(mean)) / torch.tensor(scale)
        weights = {name: torch.tensor(value) for name, value in vars(layers).items()}
        codes = weights["code"] @ torch.tanh(weights["encode"] @ r + weights["encode_bias"]) + weights["code_bias"]
        middle, log = codes.chunk(2)
        inner = torch.tanh(weights["expand"] @ middle + weights["expand_bias"])
        rebuilt = weights["decode"] @ inner + weights["decode_bias"]
        divergence = kl_divergence(Normal(middle, torch.exp(log / 2)), Normal(0.0, 1.0)).sum()
        found.append(float(((r - rebuilt) ** 2).sum() / 2 + beta * divergence))
    return found
