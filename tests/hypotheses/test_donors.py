"""Donors' values where they are wanted, one at a time and averaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as draws
from torch import Tensor

from causalmad.hypotheses.donors import align, averager
from causalmad.inputs import Batch


def padded(lengths: list[int], left: bool) -> Tensor:
    """(rows, longest) bool: the real tokens of rows of some lengths."""
    width = max(lengths)
    columns = torch.arange(width)
    rows = [columns >= width - length if left else columns < length for length in lengths]
    return torch.stack(rows)


@settings(deadline=None)
@for_all(
    draws.lists(draws.integers(1, 6), min_size=2, max_size=5),
    draws.lists(draws.integers(1, 9), min_size=1, max_size=4),
    draws.booleans(),
    draws.booleans(),
    draws.integers(1, 3),
    draws.integers(0, 1000),
)
def test_the_mean_of_donors_is_the_mean_of_each(
    donors: list[int], rows: list[int], left: bool, same: bool, count: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    donor_mask, mask = padded(donors, left), padded(rows, left)
    values = torch.from_numpy(draw.normal(size=(*donor_mask.shape, 3)))
    which = torch.from_numpy(draw.integers(len(donors), size=(1 if same else len(rows), count))).expand(len(rows), -1)
    batch = Batch(np.arange(len(rows)), {"input_ids": mask.long()}, mask, full=bool(mask.all()))
    found = averager(donor_mask, which, batch)(values)
    for row in range(len(rows)):
        for column in mask[row].nonzero().flatten().tolist():
            back = int(mask[row].nonzero().max()) - column
            # The slow twin: every donor's own tokens, counted from the end and again from there.
            own = [values[k][donor_mask[k]].flip(0) for k in which[row].tolist()]
            wanted = torch.stack([one[back % len(one)] for one in own]).mean(0)
            torch.testing.assert_close(found[row, column], wanted)
    each = torch.stack([align(values, donor_mask, one, batch) for one in which.unbind(1)])
    torch.testing.assert_close(found[mask], each.mean(0)[mask])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_means_of_half_precision_are_single(dtype: Any) -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    batch = Batch(np.arange(2), {"input_ids": mask.long()}, mask)
    which = torch.tensor([[0, 1], [1, 1]])
    values = torch.randn(2, 3, 4).to(dtype)
    wanted = torch.promote_types(dtype, torch.float32)
    assert averager(mask, which, batch)(values).dtype == wanted
    assert averager(None, which, Batch(np.arange(2), {"input_ids": mask.long()}))(values).dtype == wanted


def test_means_are_where_the_batch_is() -> None:
    """Which donors an input has is told on the CPU; here another device stands for a GPU."""
    mask = torch.ones(3, 5, dtype=torch.bool, device="meta")
    batch = Batch(np.arange(2), {"input_ids": torch.ones(2, 5, dtype=torch.long, device="meta")}, mask[:2])
    found = averager(mask, torch.tensor([[0, 1], [1, 2]]), batch)(torch.ones(3, 5, 4, device="meta"))
    assert (found.shape, found.device.type) == ((2, 5, 4), "meta")
