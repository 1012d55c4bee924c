"""Attribution patching and integrated gradients as they are defined: one input and one place at a time, plain hooks.

Inputs are single rows, never padded: a vector, an image, or a sequence of token ids.
"""

import torch

from tests.twins.resampling_profile import read, same_place


def slope(model, row, path, side, point, target):
    """Gradient of the target at one place, whose activation is set to ``point``."""
    point = point.detach().clone().requires_grad_(True)
    if path == "":
        scalar = target(model(point[None])[0])
    else:
        part = model.get_submodule(path)
        if side == "input":
            handle = part.register_forward_pre_hook(lambda _, args: (point[None], *args[1:]))
        else:

            def after(_, __, out):
                return (point[None], *out[1:]) if isinstance(out, tuple) else point[None]

            handle = part.register_forward_hook(after)
        try:
            out = model(input_ids=row[None]).logits[0, -1] if not row.is_floating_point() else model(row[None])[0]
            scalar = target(out)
        finally:
            handle.remove()
    return torch.autograd.grad(scalar, point)[0]


def activation(model, row, path, side):
    return row if path == "" else read(model, row, path, side)


def mean_baseline(model, rows, path, side):
    """Mean over all rows; over all their tokens where they are sequences."""
    values = [activation(model, row, path, side) for row in rows]
    if not rows[0].is_floating_point():
        values = [token for value in values for token in value]
    total = torch.zeros_like(values[0], dtype=torch.float64)
    for value in values:
        total += value
    return (total / len(values)).float()


def donor_baseline(model, row, donor, path, side):
    """The donor's activation, aligned with the row at the last token."""
    values = activation(model, donor, path, side)
    if row.is_floating_point():
        return values
    return torch.stack([values[same_place(position, len(row), len(donor))] for position in range(len(row))])


def contributions(model, row, path, side, baselines, target, steps):
    """Gradient times (clean - baseline), averaged over baselines; with steps, the gradient along the line between."""
    clean = activation(model, row, path, side)
    parts = []
    for baseline in baselines:
        baseline = baseline.expand_as(clean)
        if steps == 1:
            mean_slope = slope(model, row, path, side, clean, target)
        else:
            mean_slope = torch.zeros_like(clean)
            for step in range(steps):
                share = (step + 0.5) / steps
                mean_slope += slope(model, row, path, side, baseline + share * (clean - baseline), target) / steps
        parts.append(mean_slope * (clean - baseline))
    return sum(parts) / len(parts)


def margin_of(top):
    """The margin of a class, as a function of one row of logits."""

    def target(logits):
        others = torch.cat([logits[:top], logits[top + 1 :]])
        return logits[top] - torch.logsumexp(others, 0)

    return target
