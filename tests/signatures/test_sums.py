"""Contributions added up by unit: to a few roundings, and past whatever a model makes of padding."""

import numpy as np
import pytest
import torch

from causalmad import open_model
from causalmad.errors import FitError
from causalmad.inputs import Batch
from causalmad.signatures import AttributionPatching, GradientNorms
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
            torch.testing.assert_close(found["sum"][row, head], own.sum(), rtol=0, atol=1e-6)
            torch.testing.assert_close(found["size"][row, head], own.abs().sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [0, 4])
def test_sums_of_many_entries_that_cancel_are_off_by_less_than_a_millionth_of_their_size(kind, heads):
    draw = torch.Generator().manual_seed(1)
    half = torch.randn(2, 500, 64, generator=draw)
    value = torch.cat([half, -half], 1)[:, torch.randperm(1000, generator=draw)].to(kind)
    batch = Batch(np.arange(2), {"input_ids": torch.ones(2, 1000).long()}, torch.ones(2, 1000).bool())
    sites = tuple(Site("part", heads=(head,), head_count=heads) for head in range(heads)) or (Site("part"),)
    group = Group("heads" if heads else "mlps", tuple(map(str, range(len(sites)))), sites)
    found = unit_tensors(group, {sites[0].place: value}, [sites[0].place], batch)
    parts = value.double().unflatten(-1, (heads or 1, -1))
    size = parts.abs().sum((1, 3))
    assert bool(((found["sum"] - parts.sum((1, 3))).abs() <= 3e-7 * size).all())
    assert bool(((found["size"] - size).abs() <= 3e-7 * size).all())


class Root(torch.nn.Module):
    """Logits with a root of what is zero for the last input: they are finite, and their gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4, bias=False)

    def forward(self, x):
        return self.first(x).clamp(min=0).sqrt()


@pytest.mark.parametrize("kind", [AttributionPatching(baseline="zero"), GradientNorms()])
def test_a_gradient_that_is_not_finite_is_no_silent_zero(kind):
    torch.manual_seed(0)
    module = Root()
    module.first.weight.data.abs_()
    model = open_model(module)
    rows = torch.rand(6, 4) + 0.1
    fitted = kind.fit(model, model.inputs(rows))
    assert np.isfinite(fitted(rows).values).all()
    bad = torch.cat([rows, torch.zeros(1, 4)])
    with pytest.raises(FitError, match="NaN or infinite"):
        fitted(bad)


def test_units_of_several_shapes_and_heads_in_any_order_stand_where_they_are_named():
    draw = torch.Generator().manual_seed(2)
    flat, image, tokens = (
        torch.randn(3, 4, generator=draw),
        torch.randn(3, 2, 5, 6, generator=draw),
        torch.randn(3, 7, 8, generator=draw),
    )
    batch = Batch(np.arange(3), {0: torch.zeros(3, 2)})
    sites = (
        Site("image"),
        *(Site("tokens", heads=(head,), head_count=4) for head in (2, 0)),
        Site("flat"),
        Site("tokens", heads=(3,), head_count=4),
    )
    values = {
        site.place: value for site, value in zip((sites[0], sites[1], sites[3]), (image, tokens, flat), strict=True)
    }
    found = unit_tensors(Group("mixed", tuple("abcde"), sites), values, list(values), batch)
    heads = tokens.double().unflatten(-1, (4, -1))
    parts = [image.double(), heads[:, :, 2], heads[:, :, 0], flat.double(), heads[:, :, 3]]
    for column, part in enumerate(parts):
        torch.testing.assert_close(found["sum"][:, column], part.flatten(1).sum(1), rtol=0, atol=1e-5)
        torch.testing.assert_close(found["size"][:, column], part.abs().flatten(1).sum(1), rtol=1e-6, atol=0)
