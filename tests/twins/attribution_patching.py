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


def position_baseline(model, row, rows, path, side):
    """For every token the mean over the rows' tokens as far from the end; over all where none is there."""
    values = [activation(model, other, path, side) for other in rows]
    found = []
    for position in range(len(row)):
        back = len(row) - 1 - position
        there = [value[len(value) - 1 - back] for value in values if len(value) > back]
        everything = [token for value in values for token in value]
        found.append(torch.stack(there or everything).double().mean(0).float())
    return torch.stack(found)


def components_baseline(model, row, rows, path, side, count, parts):
    """The clean activation, its part along the leading eigenvectors of the covariance moved to the mean's.

    ``parts`` are slices of the last axis that have components of their own.
    """
    clean = activation(model, row, path, side)
    values = [activation(model, other, path, side) for other in rows]
    tokens = torch.cat(values) if clean.ndim == 2 else torch.stack(values)
    moved = clean.clone()
    for part in parts:
        own = tokens[:, part].double()
        centred = own - own.mean(0)
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        leading = vectors[:, -count:]
        away = clean[..., part].double() - own.mean(0)
        moved[..., part] = (clean[..., part].double() - away @ leading @ leading.T).float()
    return moved


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
