from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as draws
from torch import Tensor

from causalmad.errors import InputsError, SiteError
from causalmad.inputs import Batch, Inputs
from causalmad.sites import POOLS, Place, Site, pool, position_index


def tokens(*lengths: int, side: str = "left", **columns: Any) -> Batch:
    rows = [
        {"input_ids": torch.arange(1, size + 1), **{k: v[i] for k, v in columns.items()}}
        for i, size in enumerate(lengths)
    ]
    return next(Inputs.of(rows).batches(9, side=side, accepts=("attention_mask",)))


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("transformer.h.5.attn#head=3,9@-1", Site("transformer.h.5.attn", heads=(3, 9), position=-1)),
        ("model.layers.2.mlp.down_proj:input@all", Site("model.layers.2.mlp.down_proj", "input", position="all")),
        ("bert.encoder.layer.0.output", Site("bert.encoder.layer.0.output")),
        ("a:output[1]@S2", Site("a", element=1, position="S2")),
        ("a:input[hidden_states]#neuron=0-3,7", Site("a", "input", "hidden_states", neurons=(0, 1, 2, 3, 7))),
        ("a@all:max", Site("a", position="all:max")),
        (" a@0 ", Site("a", position=0)),
        ("", Site("")),
    ],
)
def test_text_forms(text: str, site: Site) -> None:
    assert Site.parse(text) == site
    assert Site.parse(str(site)) == site


@pytest.mark.parametrize(
    "text", ["a#head=", "a:inside", "a#layer=3", "a@-1@2", "a:input[", "a#head=1-", "a#head=3-1", "a#head=--"]
)
def test_what_is_no_site(text: str) -> None:
    with pytest.raises(SiteError):
        Site.parse(text)


NUMBERS = draws.lists(draws.integers(0, 40), max_size=4, unique=True).map(tuple)
PATHS = draws.lists(draws.sampled_from(["h", "0", "attn", "c_proj"]), max_size=4).map(".".join)
ELEMENTS = draws.one_of(draws.none(), draws.integers(0, 3), draws.sampled_from(["hidden_states", "x"]))
POSITIONS = draws.one_of(draws.none(), draws.integers(-5, 5), draws.sampled_from(["all", "all:max", "S2"]))


@for_all(PATHS, draws.sampled_from(["input", "output"]), ELEMENTS, draws.booleans(), NUMBERS, POSITIONS)
def test_every_site_is_its_text(path: str, side: Any, element: Any, head: bool, which: Any, position: Any) -> None:
    site = Site(path, side, element, which if head else (), () if head else which, position)
    assert Site.parse(str(site)) == site


@settings(deadline=None, max_examples=60)
@for_all(
    draws.sampled_from([{}, {"heads": (0,)}, {"heads": (2, 0)}, {"neurons": (5,)}, {"neurons": (7, 0, -2)}]),
    draws.sampled_from([None, -1, 0, -2, "S"]),
    draws.sampled_from(["left", "right"]),
    draws.booleans(),
)
def test_putting_back_what_was_taken_changes_nothing(which: Any, position: Any, side: str, split: bool) -> None:
    batch = tokens(3, 5, 2, side=side, S=[0, 3, 1])
    site = Site("a", position=position, head_count=4, **which)
    value = torch.randn(3, 5, 4, 2) if split and site.heads else torch.randn(3, 5, 8)
    if site.neurons and split:
        value = value.double()
    before = value.clone()
    assert site.put(value, site.take(value, batch), batch).equal(value)
    new = site.put(value, torch.zeros(()), batch)
    assert value.equal(before) and new.shape == value.shape and new.dtype == value.dtype
    # What was put can be taken again, and nothing else has changed.
    assert not site.take(new, batch).any()
    changed = site.put(torch.zeros_like(value), torch.ones(()), batch).bool()
    assert new[~changed].equal(value[~changed])
    assert int(changed.sum()) == site.take(value, batch).numel()


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_count_real_tokens(side: str) -> None:
    batch = tokens(3, 5, 2, side=side, S=[0, -1, 1])
    value = batch.main[..., None].float()
    assert Site("a", position=-1).take(value, batch).flatten().tolist() == [3, 5, 2]
    assert Site("a", position=0).take(value, batch).flatten().tolist() == [1, 1, 1]
    assert Site("a", position="S").take(value, batch).flatten().tolist() == [1, 5, 2]
    assert position_index(-1, batch).tolist() == ([4, 4, 4] if side == "left" else [2, 4, 1])
    means = {
        "all": [2, 3, 1.5],
        "all:mean": [2, 3, 1.5],
        "all:sum": [6, 15, 3],
        "all:max": [3, 5, 2],
        "all:min": [1, 1, 1],
    }
    for position, wanted in means.items():
        assert Site("a", position=position).take(value, batch).flatten().tolist() == wanted


def test_pooling_never_sees_padding() -> None:
    batch = tokens(2, 4)
    value = torch.randn(2, 4, 3)
    for how in POOLS:
        clean = pool(value, batch.mask, how)
        assert batch.mask is not None
        dirty = pool(value.masked_fill(~batch.mask[..., None], float("nan")), batch.mask, how)
        assert dirty.equal(clean)


def test_values_without_positions_are_taken_whole() -> None:
    batch = tokens(3, 5)
    pooled = torch.randn(2, 8)
    assert Site("pooler", position=-1).take(pooled, batch).equal(pooled)
    images = next(Inputs.of(torch.randn(2, 3, 4, 4)).batches(9))
    patches = torch.randn(2, 5, 8)
    assert Site("a").take(patches, images).equal(patches)
    assert Site("a", position="all").take(patches, images).allclose(patches.mean(1))
    with pytest.raises(SiteError, match="no sequences"):
        Site("a", position=-1).take(patches, images)


def test_what_cannot_be_taken_or_put() -> None:
    batch, value = tokens(3, 5), torch.randn(2, 5, 8)
    with pytest.raises(SiteError, match="no position column 'S'") as raised:
        Site("a", position="S").take(value, batch)
    assert "@-1" in raised.value.tries
    with pytest.raises(InputsError, match="outside 1 inputs; row 0 has 3 tokens"):
        Site("a", position=4).take(value, batch)
    with pytest.raises(SiteError, match="no pooling 'median'"):
        Site("a", position="all:median").take(value, batch)
    with pytest.raises(SiteError, match="pooled position"):
        Site("a", position="all").put(value, value, batch)
    with pytest.raises(SiteError, match="rows for 2 inputs"):
        Site("a", position=-1).take(value[:1], batch)
    with pytest.raises(SiteError, match="cannot be put"):
        Site("a", position=-1).put(value, torch.randn(2, 7), batch)
    with pytest.raises(SiteError, match="asks for head 4"):
        Site("a", heads=(4,), head_count=4).take(value, batch)
    with pytest.raises(SiteError, match="asks for head 0"):
        Site("a", heads=(0,), head_count=3).take(value, batch)
    with pytest.raises(SiteError, match="resolved on a model"):
        Site("a", heads=(0,)).take(value, batch)
    with pytest.raises(SiteError, match="8 entries"):
        Site("a", neurons=(8,)).take(value, batch)


def test_gradients_flow_through_take_and_put() -> None:
    batch = tokens(3, 5)
    value, new = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 2, requires_grad=True)
    site = Site("a", heads=(1,), head_count=4, position=-1)
    (site.put(value, new, batch) * torch.arange(8.0)).sum().backward()
    assert new.grad is not None and new.grad.tolist() == [[2, 3], [2, 3]]
    assert isinstance(value.grad, Tensor) and not value.grad[:, -1, 2:4].any() and value.grad[:, 0].sum() == 2 * 28


def test_places_and_sites_at_other_positions() -> None:
    site = Site.parse("a:input[1]#neuron=3@-1")
    assert site.place == Place("a", "input", 1) and str(site.place) == "a:input[1]"
    assert site.at(None).position is None and str(site.at("S2")).endswith("@S2")
    assert str(Place("a")) == "a" and hash(site) == hash(Site.parse(str(site)))
    assert np.unique([str(site), str(site.at(0))]).size == 2
