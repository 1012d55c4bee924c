import hypothesis as hyp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from causalmad.report.charts import lowest_flagged, p_histogram, roc, score_histogram

SCORES = arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6))


@hyp.given(SCORES, st.booleans())
@hyp.settings(max_examples=60, deadline=None)
def test_every_input_is_in_one_bar_inside_the_plot(scores, labelled):
    flags = scores > np.median(scores)
    chart = score_histogram(scores, flags, np.arange(len(scores)) % 2 == 0 if labelled else None)
    assert sum(int(bar.text.split()[0]) for bar in chart.bars) == len(scores)
    for bar in chart.bars:
        assert -1e-9 <= bar.x and bar.x + bar.width <= 1 + 1e-9
        assert 0 <= bar.y and bar.y + bar.height <= 1 + 1e-9 and bar.height > 0
    places = [share for share, _ in (*chart.x_ticks, *chart.y_ticks)]
    assert all(-1e-9 <= share <= 1.001 for share in places)


def test_scores_over_many_sizes_are_on_a_logarithmic_axis():
    scores = np.geomspace(1, 1000, 50)
    chart = score_histogram(scores, scores > 900, None)
    assert "logarithmic" in chart.x_label and [text for _, text in chart.x_ticks] == ["1", "10", "100", "1000"]
    assert "logarithmic" not in score_histogram(scores - 1, scores > 900, None).x_label


def test_the_threshold_is_the_lowest_flagged_score():
    scores = np.array([1.0, 2.0, 3.0, 4.0])
    assert lowest_flagged(scores, scores >= 3) == 3
    assert lowest_flagged(scores, scores > 9) is None
    assert lowest_flagged(scores, np.array([True, False, False, True])) is None
    assert lowest_flagged(scores, scores > 0) == 1
    assert "No single score" in score_histogram(scores, np.array([True, False, False, True]), None).caption
    assert score_histogram(scores, scores > 9, None).caption == "No input is flagged."


def test_infinite_scores_are_counted_and_not_drawn():
    chart = score_histogram(np.array([1.0, 2.0, np.inf]), np.array([False, False, True]), None)
    assert "1 infinite score" in chart.caption
    assert sum(int(bar.text.split()[0]) for bar in chart.bars) == 2
    alone = score_histogram(np.array([np.inf]), np.array([True]), None)
    assert alone.bars == () and alone.lines == ()


def test_the_curve_runs_from_corner_to_corner():
    draw = np.random.default_rng(0)
    labels = draw.random(500) < 0.4
    chart = roc(labels, draw.normal(size=500) + labels)
    points = np.array(chart.lines[1].points)
    assert points[0].tolist() == [0, 0] and points[-1].tolist() == [1, 1] and len(points) <= 200
    assert (np.diff(points, axis=0) >= 0).all()
    area = np.trapezoid(points[:, 1], points[:, 0])
    assert f"{area:.2f}" in chart.title or abs(float(chart.title.split()[-1]) - area) < 0.01


def test_normal_p_values_are_counted_at_alpha():
    chart = p_histogram(np.array([0.01, 0.02, 0.5, 1.0]), 0.05)
    assert chart.caption.startswith("50.0% of 4 fresh normal inputs have p <= 0.05")
    assert sum(int(bar.text.split()[0]) for bar in chart.bars) == 4
    assert chart.lines[0].points[0][1] == pytest.approx(4 / 20 / 2)
