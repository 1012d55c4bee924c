from itertools import count

import hypothesis as hyp
import numpy as np
from hypothesis import strategies as st

from causalmad.report.grids import grids, group_sums
from causalmad.signatures.base import Column

NUMBERS = count()


def column(site="", unit="", position="", block="b"):
    return Column(f"column {next(NUMBERS)}", site, unit, position, block)


def test_layers_by_heads():
    found = [column(f"transformer.h.{i}.attn.c_proj:input#head={j}") for i in (10, 2) for j in (1, 0)]
    (grid,) = grids([*found, column("transformer.h.2.mlp"), column("transformer.h.2"), column()])
    assert grid.kind == "model" and grid.rows == ("layer 2", "layer 10")
    assert set(grid.columns) == {"head 0", "head 1", "mlp", "output"}
    assert grid.cells[grid.members[0]] == (1, grid.columns.index("head 1"))
    assert grid.members[-1] == -1


def test_stacks_of_layers_are_told_apart():
    (grid,) = grids([column("encoder.layer.0.mlp"), column("decoder.layer.0.mlp"), column("lm_head")])
    assert grid.rows == ("decoder.layer.0", "encoder.layer.0", "lm_head")


def test_positions_stand_in_their_order():
    names = ["@-1", "@-10", "@-2", "0", "beyond", "@S2", "3"]
    (grid,) = grids([column(position=name) for name in names])
    assert grid.kind == "positions" and grid.columns == ("beyond", "0", "3", "S2", "-10", "-2", "-1")
    assert grid.rows == ("b",)


def test_a_site_at_a_position_is_in_both_maps():
    model, positions = grids([column(f"h.{i}.mlp@{j}", position=str(j)) for i in (0, 1) for j in (-2, -1)])
    assert model.rows == ("layer 0", "layer 1") and positions.columns == ("-2", "-1")
    assert positions.rows == ("layer 0 mlp", "layer 1 mlp")
    assert len(model.cells) == 2 and len(positions.cells) == 4


def test_parts_and_patches_of_the_input_are_places():
    (blocks,) = grids([column(unit="left"), column(unit="right"), column(unit="sum")], blocks=("left", "right"))
    assert blocks.columns == ("left", "right") and blocks.members == (0, 1, -1)
    (patches,) = grids([column(unit=f"{i}:{i + 2},{j}:{j + 2}") for i in (0, 2) for j in (0, 2)])
    assert patches.kind == "patches" and patches.rows == ("rows 0:2", "rows 2:4")


def test_what_has_no_place_has_no_map():
    assert grids([column(), column(unit="rank 1"), column("a b"), column("1")]) == ()


@hyp.given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 5))
@hyp.settings(max_examples=30, deadline=None)
def test_sums_are_those_of_a_loop(seed, width, groups):
    draw = np.random.default_rng(seed)
    amounts, members = draw.normal(size=(3, width)), draw.integers(-1, groups, width)
    slow = [[sum(row[members == group]) for group in range(groups)] for row in amounts]
    np.testing.assert_allclose(group_sums(amounts, members, groups), np.reshape(slow, (3, groups)), atol=1e-12)
