"""Functional coupling one copy of the model, one input and one pair at a time."""

import copy
import math

import numpy as np
import torch

from tests.twins.resampling_profile import run


def traces(model, rows, draws, noise, seed):
    """Answers, and losses (inputs, draws) under disturbed copies of the model."""
    answers = [int(run(model, row).argmax()) for row in rows]
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(draws):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for value in other.parameters():
                spread = math.sqrt(float(((value - value.mean()) ** 2).mean()))
                value += noise * spread * torch.randn(value.shape, generator=generator)
        column = []
        for row, answer in zip(rows, answers):
            logits = run(other, row).tolist()
            column.append(math.log(sum(math.exp(value) for value in logits)) - logits[answer])
        losses.append(column)
    return answers, np.array(losses).T


def coupling(trace, answer, kept, answers, top, own=None):
    """Columns of one input, given the traces of the kept ones; ``own`` is the kept input that it is."""
    others = [i for i in range(len(kept)) if i != own]
    found = {i: float(np.corrcoef(trace, kept[i])[0, 1]) for i in others}
    order = sorted(found.values())
    same = [abs(found[i]) for i in others if answers[i] == answer]
    top = min(top, len(kept) - 1)
    return [
        np.mean(order[-top:]),
        order[-1],
        np.mean(order[:top]),
        order[0],
        np.mean(order),
        np.mean(same) if same else 0.0,
        math.log(np.std(trace)),
    ]
