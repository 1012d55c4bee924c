from __future__ import annotations

import pytest
from torch import nn

from causalmad.errors import SiteError
from causalmad.models.order import defined, ranks
from causalmad.sites import Place


def test_the_order_of_definition_takes_inputs_before_and_outputs_after() -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))
    order = defined(name for name, _ in net.named_modules())
    inner = [("0.0", "input"), ("0.0", "output"), ("0.1", "input"), ("0.1", "output")]
    last = [("1", "input"), ("1", "output")]
    assert order == [("", "input"), ("0", "input"), *inner, ("0", "output"), *last, ("", "output")]


def test_paths_that_only_begin_alike_are_no_parents() -> None:
    assert defined(["", "h1", "h10", "h1x.y"])[1:5] == [
        ("h1", "input"),
        ("h1", "output"),
        ("h10", "input"),
        ("h10", "output"),
    ]


def test_ranks() -> None:
    order = [("a", "input"), ("b", "input"), ("b", "output"), ("a", "output"), ("c", "input"), ("c", "input")]
    assert ranks([Place("a"), Place("b", "input")], order) == {Place("a"): 3, Place("b", "input"): 1}
    with pytest.raises(SiteError, match="more than once"):
        ranks([Place("c", "input")], order)
    with pytest.raises(SiteError, match="never reached"):
        ranks([Place("d")], order)
