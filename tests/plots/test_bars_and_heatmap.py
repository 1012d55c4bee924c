"""The parts of a score as bars and as a grid: whatever is drawn adds up to the score."""

import hypothesis as hyp
import hypothesis.strategies as st
import numpy as np
import pytest

import causalmad as cm
from causalmad.errors import SpecError
from causalmad.explanation import Contribution, Explanation
from causalmad.plots.heatmap import Part, heatmap
from causalmad.signatures.base import Column
from causalmad.testing.toys import toy

pytest.importorskip("matplotlib")


def made(columns, amounts):
    parts = [Contribution(column, float(a), 0.0, 0.0) for column, a in zip(columns, amounts, strict=True)]
    parts.sort(key=lambda part: -abs(part.amount))
    return Explanation("an input", float(sum(amounts)), 0.02, tuple(parts), ())


def bars(ax):
    return {label.get_text(): bar.get_width() for label, bar in zip(ax.get_yticklabels(), ax.patches, strict=True)}


def grid(ax):
    """(row, column) -> amount, by the labels of the ticks."""
    values = ax.images[0].get_array()
    rows, columns = ([t.get_text() for t in ticks] for ticks in (ax.get_yticklabels(), ax.get_xticklabels()))
    return {
        (rows[y], columns[x]): float(values[y, x])
        for y, x in np.ndindex(values.shape)
        if not np.ma.is_masked(values[y, x])
    }


@hyp.given(st.lists(st.floats(-50, 50), min_size=1, max_size=30), st.integers(1, 32))
@hyp.settings(max_examples=15, deadline=None)
def test_bars_sum_to_the_score_whatever_is_shown(amounts, top):
    found = made([Column(f"column {i}") for i in range(len(amounts))], amounts)
    drawn = bars(found.plot(top))
    assert len(drawn) == min(top, len(amounts)) + (len(amounts) > top)
    assert sum(drawn.values()) == pytest.approx(found.score, abs=1e-9)
    for part in found.contributions[:top]:
        assert drawn[part.column.name] == part.amount


def test_the_largest_is_above_and_the_rest_below():
    found = made([Column(name) for name in "abcde"], [1, -5, 3, 0.5, 0.25])
    ax = found.plot(top=3)
    assert list(bars(ax)) == ["b", "c", "a", "2 more columns"] and ax.yaxis_inverted()
    assert "score -0.25, p = 0.02" in ax.get_title()
    with pytest.raises(SpecError, match="top=0"):
        found.plot(top=0)


def test_names_are_taken_as_they_are():
    names = ["cost $5 and $_{", "a" * 130, r"\frac"]
    ax = made([Column(name) for name in names], [3, 2, 1]).plot()
    assert ["".join(name.split("\n")) for name in bars(ax)] == names
    ax.figure.draw_without_rendering()


def test_heads_of_a_model_form_a_grid_of_layers_and_heads():
    toys = toy("gpt2", trusted=40, fresh=2)
    fitted = cm.Detector(cm.signatures.ResamplingProfile("heads", donors=2)).fit(toys.model, toys.trusted)
    found = fitted.explain(toys.fresh)[0]
    ax = found.heatmap()
    cells = grid(ax)
    assert set(cells) == {(layer, head) for layer in "01" for head in "01"}
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("layer", "head")
    for (layer, head), amount in cells.items():
        name = f"transformer.h.{layer}.attn.c_proj:input#head={head}"
        assert amount == pytest.approx(sum(p.amount for p in found.contributions if p.column.site == name), abs=1e-9)
    rest = [part.amount for part in found.contributions if not part.column.site]
    assert f"{sum(rest):.4g} in {len(rest)} other columns" in ax.get_title().replace("\n", " ")
    assert sum(cells.values()) + sum(rest) == pytest.approx(found.score, rel=1e-6)


def test_positions_stand_as_they_are_read():
    at = ("@-1", "beyond", "@-2", "@-10", "S2", "@0")
    parts = [Part(i + 10.0 * layer, f"model.layers.{layer}", "", p) for layer in (0, 10, 2) for i, p in enumerate(at)]
    ax = heatmap(parts, "")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["beyond", "0", "S2", "-10", "-2", "-1"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0", "2", "10"]
    assert grid(ax)["10", "S2"] == 104.0


def test_other_parts_of_a_layer_stand_beside_its_heads():
    sites = ["b.0.attn#head=0", "b.0.attn#head=1", "b.0.mlp", "b.1.attn#head=1", "b.1.mlp", "b.1.mlp"]
    cells = grid(heatmap([Part(1.0, site, site, "") for site in sites], ""))
    assert cells == {("0", "0"): 1, ("0", "1"): 1, ("0", "mlp"): 1, ("1", "1"): 1, ("1", "mlp"): 2}


def test_units_form_a_grid_and_layers_of_other_stems_are_told_apart():
    parts = [Part(1.0, f"layer{i}.0.conv", str(unit), "") for i in (1, 2) for unit in range(3)]
    assert set(grid(heatmap(parts, ""))) == {(f"layer{i}.0", str(u)) for i in (1, 2) for u in range(3)}
    stretches = [Part(1.0, f"0#neuron={u},{u + 1}", "", "") for u in (0, 2)]
    assert set(grid(heatmap(stretches, ""))) == {("0", "0-1"), ("0", "2-3")}


@pytest.mark.parametrize(
    "columns",
    [
        [Column("rank 1", unit="rank 1"), Column("sum", unit="sum")],
        [Column("a", "h.0.mlp"), Column("b", "h.1.mlp")],
        [Column("two sites", "h.0 h.1"), Column("none", "h.0#subspace=x")],
        [],
    ],
)
def test_what_is_no_grid_is_refused(columns):
    with pytest.raises(SpecError, match="form no grid"):
        made(columns, [1.0] * len(columns)).heatmap()


def test_a_large_grid_has_few_ticks_and_no_numbers():
    ax = heatmap([Part(1.0, f"h.{i}", str(j), "") for i in range(3) for j in range(768)], "")
    assert ax.images[0].get_array().shape == (3, 768)
    assert len(ax.get_xticks()) <= 24 and not ax.texts
