"""What replacing a query or a key does to the attention, exactly, and to the output, to first order in the pattern."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from causalmad.models.attention import scores

_NOWHERE = -1e300  # a score that no other is below; finite, so that differences are numbers


def query_changes(queries: Tensor, keys: Tensor, mask: Tensor, bases: Sequence[Tensor]) -> Tensor:
    """(batch, heads, queries, keys) the pattern minus that with each query replaced, averaged over replacements.

    Args:
        queries: (batch, positions, heads, features), scaled.
        keys: (batch, positions, groups, features).
        mask: (batch, 1, positions, positions), added to the scores.
        bases: replacements of all queries; a row of the pattern depends on one of them.
    """
    clean = torch.softmax(double_scores(queries, keys, mask), -1)
    return torch.stack([clean - torch.softmax(double_scores(base, keys, mask), -1) for base in bases]).mean(0)


def key_changes(queries: Tensor, keys: Tensor, mask: Tensor, bases: Sequence[Tensor]) -> Tensor:
    """(batch, heads, queries, keys) the weight of each key minus its weight when it alone is replaced, averaged.

    A key that is replaced changes its own score: with p its weight and d the change, its weight becomes the logistic
    function of logit(p) + d, where the logit is its score minus the log-sum-exp of the others. Taken so, nothing is
    lost where the attention is saturated and p is 1 up to rounding.
    """
    clean = double_scores(queries, keys, mask)
    logit = clean - _log_sum_of_others(clean)
    weight = torch.sigmoid(logit)
    moved = (torch.sigmoid(logit + double_scores(queries, base - keys, torch.zeros_like(mask))) for base in bases)
    return torch.stack([weight - new for new in moved]).mean(0)


def through_pattern(changes: Tensor, slope: Tensor) -> Tensor:
    """(batch, positions, heads) effect of every query: the change of its row times the gradient there."""
    return (changes * slope.double()).sum(-1).transpose(1, 2)


def through_weight(clean: Tensor, changes: Tensor, slope: Tensor) -> Tensor:
    """(batch, positions, heads) effect of every key on all rows together.

    What a key's weight loses goes to the others in proportion to theirs: the change times the difference between the
    gradient at the key and the others' mean gradient.

    Args:
        clean: (batch, heads, queries, keys) scores, see :func:`double_scores`.
        changes: of :func:`key_changes`.
        slope: gradient with respect to the pattern.
    """
    slope = slope.double()
    pattern = torch.softmax(clean, -1)
    largest = clean.argmax(-1, keepdim=True)
    # Only one weight of a row can be above a half; for the rest, one minus it is not rounded away.
    others = (pattern * slope).sum(-1, keepdim=True) - pattern * slope
    mean = others / (1 - pattern).clamp(min=0.25)
    rest = torch.softmax(clean.scatter(-1, largest, _NOWHERE), -1)
    mean = mean.scatter(-1, largest, (rest * slope).sum(-1, keepdim=True))
    return (changes * (slope - mean)).sum(-2).transpose(1, 2)


def double_scores(queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """(batch, heads, queries, keys) what the softmax is taken of, in double precision."""
    return scores(queries.double(), keys.double(), mask.double())


def _log_sum_of_others(values: Tensor) -> Tensor:
    """For every entry of the last axis, the log-sum-exp of the others."""
    whole = torch.logsumexp(values, -1, keepdim=True)
    largest = values.argmax(-1, keepdim=True)
    found = whole + torch.log1p(-torch.exp(values - whole).clamp(max=0.75))
    return found.scatter(-1, largest, torch.logsumexp(values.scatter(-1, largest, _NOWHERE), -1, keepdim=True))
