"""Contributions added up by unit: in double precision, and past whatever a model makes of padding."""

import numpy as np
import torch

from causalmad.inputs import Batch
from causalmad.signatures.sums import unit_tensors
from causalmad.signatures.units import Group
from causalmad.sites import Site


def test_padding_counts_nothing_even_where_it_is_not_a_number():
    draw = torch.Generator().manual_seed(0)
    value = torch.randn(3, 5, 8, generator=draw)
    mask = torch.arange(5) >= torch.tensor([0, 2, 4])[:, None]
    spoiled = torch.where(mask[:, :, None], value, torch.nan)
    batch = Batch(np.arange(3), {"input_ids": mask.long()}, mask)
    sites = tuple(Site("part", heads=(head,), head_count=2) for head in range(2))
    group = Group("heads", ("0", "1"), sites)
    place = sites[0].place
    found = unit_tensors(group, {place: spoiled}, [place], batch)
    for row in range(3):
        for head in range(2):
            own = value[row, mask[row], 4 * head : 4 * head + 4].double()
            torch.testing.assert_close(found["sum"][row, head], own.sum())
            torch.testing.assert_close(found["size"][row, head], own.abs().sum())
