"""Probes of the model's answer, by scikit-learn's own probabilities; their gradients by autograd on a plain chain."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)


def probe(values, labels, strength):
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000)).fit(values, labels)


def chosen(values, labels, folds):
    """The strength of smallest held-out loss."""
    losses = []
    for strength in STRENGTHS:
        loss = 0.0
        for fold in sorted(set(folds)):
            fitted = probe(values[folds != fold], labels[folds != fold], strength)
            for row in np.flatnonzero(folds == fold):
                place = list(fitted.classes_).index(labels[row])
                loss -= fitted.predict_log_proba(values[[row]])[0, place]
        losses.append(loss)
    return STRENGTHS[int(np.argmin(losses))]


def log_odds(fitted, value, label):
    """Log p / (1 - p) of a label, and the same of the likeliest."""
    p = fitted.predict_proba(value[None])[0]
    own, top = p[list(fitted.classes_).index(label)], p.max()
    return np.log(own / (1 - own)), np.log(top / (1 - top))


def shift(chain, cut, read, x, mean, top):
    """(features,) (gradient of the output's margin - gradient of the probe's) * (x - mean) of one input.

    ``cut`` modules come before the probe; ``read`` gives its logits, whose classes are those of the output.
    """

    def margin(logits):
        return logits[top] - torch.logsumexp(torch.cat([logits[:top], logits[top + 1 :]]), 0)

    grads = []
    for function in (lambda v: chain(v[None])[0], lambda v: read(chain[:cut](v[None])[0])):
        point = x.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(margin(function(point)), point)
        grads.append(grad)
    return (grads[0] - grads[1]) * (x - mean)
