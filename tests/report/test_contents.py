import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest

from causalmad import Detector
from causalmad.calibration import CrossConformal
from causalmad.errors import InputsError, SpecError
from causalmad.inputs import Inputs
from causalmad.report import report_of, report_of_rows
from causalmad.report.reasons import short
from causalmad.signatures import Activations, CausalScrubbing
from causalmad.testing.toys import toy
from tests.report.made import made


def assert_same(one, other):
    assert one.rows == other.rows and one.leading == other.leading and one.blocks == other.blocks
    for ours, theirs in zip(one.top, other.top, strict=True):
        assert [index for index, _, _ in ours] == [index for index, _, _ in theirs]
        np.testing.assert_allclose(ours, theirs, rtol=2e-3)
    for ours, theirs in zip(one.nearest, other.nearest, strict=True):
        assert [key for key, _ in ours] == [key for key, _ in theirs]
        np.testing.assert_allclose([gap for _, gap in ours], [gap for _, gap in theirs], rtol=2e-2)
    np.testing.assert_allclose(one.trusted, other.trusted, rtol=1e-3)


def cells(reasons):
    """Heat maps as dicts, whatever the order of their cells."""
    return [
        [
            {(grid.rows[i], grid.columns[j]): amount for (i, j), amount in zip(grid.cells, amounts, strict=True)}
            for amounts in rows
        ]
        for grid, rows in zip(reasons.grids, reasons.cells, strict=True)
    ]


@pytest.mark.parametrize("top", [1, 3, 8, 20])
def test_what_is_kept_sums_to_the_score_and_is_the_largest(top):
    detection, *_ = made()
    reasons = report_of(detection, top_columns=top).reasons
    for row in range(len(detection)):
        found = detection.reason(row)
        kept = reasons.top[row]
        assert len(kept) == min(top, 8)
        assert sum(amount for _, amount, _ in kept) + reasons.rest[row] == pytest.approx(found.score, rel=1e-3)
        largest = found.contributions[:top]
        assert [reasons.columns[index].name for index, _, _ in kept] == [part.column.name for part in largest]
        assert [amount for _, amount, _ in kept] == [short(part.amount) for part in largest]
        assert [value for _, _, value in kept] == [short(part.value) for part in largest]
        assert reasons.columns[reasons.leading[row]].name == found.leading
        assert dict(zip(reasons.blocks, reasons.parts[row])) == pytest.approx(found.parts, rel=1e-3)
        assert reasons.blocks[reasons.failed(row)] == found.failed
        # Every column is at one place, in the model or in the input.
        assert sum(totals[row] for totals in reasons.totals) == pytest.approx(found.score, rel=1e-2)
        for grid_cells, totals in zip(reasons.cells, reasons.totals, strict=True):
            assert sum(grid_cells[row]) == pytest.approx(totals[row], rel=0.05, abs=0.05)


@pytest.mark.parametrize("calibrator", [None, CrossConformal(folds=3)])
def test_reasons_at_once_are_those_one_by_one(calibrator):
    toys = toy("mlp", trusted=60, fresh=25)
    spec = Detector(Activations()) if calibrator is None else Detector(Activations(), calibrator=calibrator)
    fitted = spec.fit(toys.model, toys.trusted)
    detection = fitted.detect(toys.fresh, alpha=0.2)
    assert_same(report_of(detection, detector=fitted).reasons, report_of(detection).reasons)


def test_donors_and_claims_are_kept():
    toys = toy("gpt2", trusted=30, fresh=6)
    fitted = Detector(CausalScrubbing(toys.hypothesis, draws=2)).fit(toys.model, toys.trusted)
    detection = fitted.detect(toys.fresh, alpha=0.2)
    report = report_of(detection, detector=fitted, hypothesis=toys.hypothesis, inputs=toys.fresh)
    assert report.reasons.donors == tuple(detection.reason(row).donors for row in range(6))
    assert [node.name for node in report.graph.nodes] == ["sign", "pair", "output"]
    assert [[report.reasons.blocks[i] for i in node.blocks] for node in report.graph.nodes] == [
        ["claim sign"],
        ["claim pair"],
        [],
    ]
    flagged = [detection.reason(row).failed for row in np.flatnonzero(detection.flags)]
    assert report.failing["sign"] == flagged.count("claim sign")


def test_a_score_that_is_no_sum_is_explained_by_its_shapley_values():
    toys = toy("mlp", trusted=60, fresh=4)
    fitted = Detector(Activations(), IsolationForest(n_estimators=5, random_state=0)).fit(toys.model, toys.trusted)
    detection = fitted.detect(toys.fresh, alpha=0.2)
    reasons = report_of(detection, detector=fitted).reasons
    assert reasons.method == detection.reason(0).method and "Shapley" in reasons.method
    assert_same(reasons, report_of(detection).reasons)


def test_lines_make_the_same_report():
    detection, *_ = made()
    rows = json.loads(json.dumps(detection.rows()))
    ours, theirs = report_of_rows(rows), report_of(detection)
    assert (ours.headline, ours.scores, ours.p_values, ours.flags) == (
        theirs.headline,
        theirs.scores,
        theirs.p_values,
        theirs.flags,
    )
    for row in range(len(rows)):
        names = [[part.columns[index].name for index, _, _ in part.top[row]] for part in (ours.reasons, theirs.reasons)]
        assert names[0] == names[1]
        assert ours.reasons.rest[row] == theirs.reasons.rest[row] and ours.reasons.nearest == theirs.reasons.nearest
    # A line names sites, and a position at the end of a column's name, but no block.
    assert [grid.kind for grid in ours.reasons.grids] == ["model", "positions"]
    (heads, places), (same_heads, same_places) = cells(ours.reasons), cells(theirs.reasons)
    assert heads == same_heads
    assert [{key[1]: amount for key, amount in row.items()} for row in places] == [
        {key[1]: amount for key, amount in row.items()} for row in same_places
    ]


def test_lines_that_name_blocks_and_positions_are_taken_at_their_word():
    detection, *_ = made(4)
    known = {column.name: column for column in detection.signatures.columns}
    rows = detection.rows()
    for part in (part for row in rows for part in row["contributions"]):
        column = known[part["column"]]
        part |= {"unit": column.unit, "position": column.position, "block": column.block}
    ours, theirs = report_of_rows(rows).reasons, report_of(detection).reasons
    assert cells(ours) == cells(theirs)
    for row in range(4):
        assert dict(zip(ours.blocks, ours.parts[row])) == dict(zip(theirs.blocks, theirs.parts[row]))


def test_false_discoveries_are_named():
    detection, *_ = made()
    detection = replace(detection, fdr="bh", adjusted=np.minimum(detection.p_values * 3, 1))
    report = report_of(detection)
    assert report.headline.endswith("inputs flagged at false discovery rate 0.1 (bh)")
    assert report.flags == tuple(detection.flags.tolist()) and len(report.adjusted) == 30
    again = report_of_rows(detection.rows())
    assert again.headline == report.headline and again.adjusted == report.adjusted


def test_one_by_one_the_most_anomalous_are_explained_and_the_page_says_so():
    detection, *_ = made(1050, 4)
    report = report_of(detection, top_columns=2)
    assert len(report.reasons.rows) == 1000 and any("1,000 most anomalous" in note for note in report.notes)
    left = sorted(set(range(1050)) - set(report.reasons.rows))
    assert detection.scores[left].max() <= detection.scores[list(report.reasons.rows)].min()
    assert not detection.flags[left].any()


def test_labels_count_hits_of_either_kind():
    detection, *_ = made()
    labels = np.arange(30) % 3 == 0
    report = report_of(detection, labels=labels)
    hits, false = int(detection.flags[labels].sum()), int(detection.flags[~labels].sum())
    assert report.notes[0].startswith(f"Flagged are {hits} of 10 anomalous inputs ({hits / 10:.1%})")
    assert f"{false} of 20 normal inputs" in report.notes[0]
    assert len(report.charts) == 2 and len(report_of(detection).charts) == 1


def test_inputs_that_were_trusted_are_remarked():
    detection, *_ = made(**{"also trusted": ("input 3",), "also untrusted": ("input 5",)})
    report = report_of(detection)
    assert set(report.remarks) == {3, 5} and "means nothing" in report.remarks[3]


def test_tokens_are_text_where_there_is_a_tokenizer(tokenizer):
    detection, *_ = made(3)
    inputs = Inputs.of({"input_ids": [[2, 3], [3], [4, 2, 2]]}, ids=detection.ids)
    tokens = report_of(detection, inputs=inputs, tokenizer=tokenizer).tokens
    assert tokens.vocabulary == ("w2", "w3", "w4") and tokens.rows == ((0, 1), (1,), (2, 0, 0))
    assert report_of(detection, inputs=inputs).tokens.vocabulary == ("2", "3", "4")
    assert report_of(detection).tokens.rows == ()


def test_of_long_inputs_the_last_tokens_are_kept_and_the_others_counted(monkeypatch):
    monkeypatch.setattr("causalmad.report.tokens._MOST", 0)
    detection, *_ = made(2)
    inputs = Inputs.of({"input_ids": [list(range(50)), [7, 8]]}, ids=detection.ids)
    tokens = report_of(detection, inputs=inputs).tokens
    assert [tokens.vocabulary[i] for i in tokens.rows[0]] == [str(i) for i in range(18, 50)]
    assert tokens.cut == (18, 0)


def test_where_blocks_and_cells_are_too_many_numbers_the_columns_stand_alone(monkeypatch):
    detection, *_ = made()
    monkeypatch.setattr("causalmad.report.reasons._MOST", 10)
    reasons = report_of(detection).reasons
    assert reasons.parts == () and reasons.cells == ((), ()) and reasons.failed(0) is None
    assert len(reasons.top) == 30


def test_what_does_not_fit_is_named():
    detection, *_ = made()
    other = Inputs.of(np.zeros((30, 2), np.float32))
    for given, error in (
        ({"labels": [True]}, InputsError),
        ({"labels": np.full(30, 2)}, InputsError),
        ({"inputs": other}, InputsError),
        ({"normal": [0.5, 1.5]}, InputsError),
        ({"normal": []}, InputsError),
        ({"top_columns": 0}, SpecError),
    ):
        with pytest.raises(error):
            report_of(detection, **given)
        with pytest.raises(error):
            report_of_rows(detection.rows(), **given)
    toys = toy("mlp", trusted=60, fresh=2)
    with pytest.raises(SpecError, match="another detector"):
        report_of(detection, detector=Detector(Activations()).fit(toys.model, toys.trusted))


def test_lines_of_something_else_are_named():
    detection, *_ = made(2)
    with pytest.raises(InputsError, match="no lines"):
        report_of_rows([])
    good, bad = detection.rows()
    del bad["nearest"]
    with pytest.raises(InputsError, match="line 2 has no 'nearest'"):
        report_of_rows([good, bad])
    with pytest.raises(InputsError, match="line 1"):
        report_of_rows([3])
    with pytest.raises(InputsError, match="no inputs"):
        report_of(made(0)[0])
