"""A sparse autoencoder latent by latent, in plain loops."""

import numpy as np


def encode(values, W_enc, b_enc, centre, k=0, threshold=None):
    """(n, latents)."""
    found = np.zeros((len(values), len(b_enc)))
    for n, value in enumerate(values):
        before = [
            sum((value[j] - centre[j]) * W_enc[j, i] for j in range(len(value))) + b_enc[i] for i in range(len(b_enc))
        ]
        keep = sorted(range(len(before)), key=lambda i: -before[i])[: k or len(before)]
        for i in keep:
            if before[i] > (0 if threshold is None else max(threshold[i], 0)):
                found[n, i] = before[i]
    return found


def decode(latents, W_dec, b_dec):
    """(n, features)."""
    return np.stack([b_dec + sum(row[i] * W_dec[i] for i in range(len(row))) for row in latents])


def counts(latents, trusted, own):
    """(n, 3) active latents, novel ones, and their sum; ``own`` is each row's place among the trusted ones, or None."""
    found = []
    for n, row in enumerate(latents):
        witnesses = [other for t, other in enumerate(trusted) if t != own[n]]
        novel = [i for i in range(len(row)) if row[i] > 0 and not any(other[i] > 0 for other in witnesses)]
        found.append([sum(value > 0 for value in row), len(novel), sum(row[i] for i in novel)])
    return np.array(found, dtype=float)
