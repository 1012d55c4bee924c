"""Tables for notebooks hold what the printed tables hold, and no markup of anybody else."""

from html.parser import HTMLParser

import networkx as nx
import numpy as np
import pytest
from rich.table import Table
from rich.text import Text

import causalmad as cm
from causalmad.evaluation.leaderboard import Leaderboard, Standing
from causalmad.evaluation.results import Evaluation, SeedResult
from causalmad.hypotheses.checks import Report
from causalmad.inputs import Inputs
from causalmad.plots.tables import facts, to_html
from causalmad.testing.toys import toy

EVIL = "<script>alert('1')</script> & [bold]$x$"


class Reader(HTMLParser):
    """The tags and the texts of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.texts = set(), [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(page):
    """All texts of a page that has only the tags of tables."""
    found = Reader(page)
    assert found.tags <= {"table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td"}
    return [text for text in found.texts if text.strip()]


@pytest.fixture(scope="module")
def fitted():
    made = toy("mlp", trusted=60, fresh=4)
    named = Inputs.of(made.trusted.main, ids=[f"{EVIL} {i}" for i in range(60)])
    return cm.Detector(cm.signatures.Activations()).fit(made.model, named)


@pytest.fixture(scope="module")
def detection(fitted):
    return fitted.detect(Inputs.of(toy("mlp", trusted=60, fresh=4).fresh.main, ids=[EVIL, "b", "c", "d"]), alpha=0.2)


def test_a_detection_shows_its_table_and_escapes_ids(detection):
    texts = read(detection._repr_html_())
    assert EVIL in texts and "leading column" in texts
    assert f"{detection.scores[0]:.4g}" in texts
    assert texts[0] == f"{int(detection.flags.sum())} of 4 inputs flagged at alpha = 0.2"


def test_an_explanation_escapes_its_id_and_those_of_the_nearest(detection):
    texts = read(detection.explain(0)._repr_html_())
    assert EVIL in texts[0] and texts[-1].startswith(f"nearest trusted inputs: {EVIL}")
    assert "sum" in texts


def test_a_fitted_detector_shows_its_parts_and_sizes(fitted):
    texts = read(fitted._repr_html_())
    assert repr(fitted.spec.signature) in texts and repr(fitted.spec.reference) in texts
    assert str(len(fitted.provenance["ids"]["calibration"])) in texts


def test_a_leaderboard_and_an_evaluation_escape_names():
    board = Leaderboard(EVIL, (0,), {EVIL: {"a": Standing(0.5, (0.4, 0.6), 1, {})}}, {}, {})
    texts = read(board._repr_html_())
    assert EVIL in texts and "0.500" in texts
    seed = SeedResult(0, 0.75, 0.5, {"0.01": 0.25}, {"0.05": None}, {}, 1, 1, {}, {EVIL: 0.625}, {}, (EVIL,))
    texts = read(Evaluation(EVIL, "mine", (seed,), {})._repr_html_())
    assert {EVIL, f"mine on {EVIL}", "0.750", "0.625", "mine (this detector)"} <= set(texts)


def test_a_report_shows_every_problem():
    found = Report(EVIL, (f"node {EVIL!r}: no module", "a cycle"), {"parity": (2, 7)}, None)
    texts = read(found._repr_html_())
    assert texts == [
        f"{EVIL}: 2 problems",
        f"node {EVIL!r}",
        "no module",
        "a cycle",
        "parity",
        "2 values, at least 7 donors each",
    ]
    graph = nx.DiGraph(name="mine")
    graph.add_edge("sum", cm.OUTPUT)
    graph.add_node("sum", at="1", value=lambda x: bool(np.asarray(x["input"]).sum() > 0))
    made = toy("mlp", trusted=30, fresh=1)
    texts = read(cm.Hypothesis(graph).check(made.model, made.trusted)._repr_html_())
    assert texts[0] == "mine: no problems" and "behaviour preserved" in texts


def test_rich_tables_keep_their_order_sides_and_notes():
    table = Table(title=Text(EVIL), caption="one\ntwo")
    table.add_column("name")
    table.add_column("number", justify="right")
    table.add_row(Text("x", style="bold"), "1")
    page = to_html(table, table)
    assert read(page) == [EVIL, "name", "number", "x", "1", "one\ntwo"] * 2
    assert page.count("text-align:right") == 4 and "bold>" not in page
    assert read(to_html(Table())) == []
    assert read(facts(EVIL, [("a", 1)])) == [EVIL, "a", "1"]
