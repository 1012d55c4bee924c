"""Finetuning shift one input and one parameter at a time, with Adam written out."""

import copy
import math

import torch

from tests.twins.resampling_profile import divergence, log_probabilities, run


def finetuned(model, rows, epochs, rate, decay, seed, batch=64):
    """A copy of a model in eval mode, trained on the model's own answers to rows."""
    made = copy.deepcopy(model)
    values = [value.requires_grad_(True) for value in made.parameters()]
    answers = [int(run(model, row).argmax()) for row in rows]
    first = [torch.zeros_like(value) for value in values]
    second = [torch.zeros_like(value) for value in values]
    generator, step = torch.Generator().manual_seed(seed), 0
    for _ in range(epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            total = [torch.zeros_like(value) for value in values]
            for i in chosen:
                row = rows[i]
                tokens = not row.is_floating_point()
                logits = made(input_ids=row[None]).logits[0, -1] if tokens else made(row[None])[0]
                loss = (logits.logsumexp(0) - logits[answers[i]]) / len(chosen)
                for sum_, part in zip(total, torch.autograd.grad(loss, values, allow_unused=True)):
                    sum_ += 0 if part is None else part
            step += 1
            with torch.no_grad():
                for value, slope, mean, square in zip(values, total, first, second):
                    mean.copy_(0.9 * mean + 0.1 * slope)
                    square.copy_(0.999 * square + 0.001 * slope**2)
                    size = (square / (1 - 0.999**step)).sqrt() + 1e-8
                    value.copy_((1 - rate * decay) * value - rate * mean / (1 - 0.9**step) / size)
    return made


def shift(model, made, row):
    """Divergence, and the change of the log-probability of the model's answer."""
    before, after = run(model, row), run(made, row)
    answer = int(before.argmax())
    change = log_probabilities(after)[answer] - log_probabilities(before)[answer]
    assert math.isfinite(change)
    return divergence(before, after), change
