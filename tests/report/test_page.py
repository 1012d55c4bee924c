import base64
import builtins
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import hypothesis as hyp
import numpy as np
import pytest
from hypothesis import strategies as st

from causalmad import Detector
from causalmad.errors import CausalmadError, InputsError, StoreError
from causalmad.inputs import Inputs
from causalmad.references import Mahalanobis
from causalmad.report import render, report_of, report_of_rows, write_report, write_report_from_rows
from causalmad.signatures import Activations
from causalmad.signatures.base import Signatures
from causalmad.testing.toys import toy
from tests.report.made import columns, made

ATTACKS = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]>&lt;&amp;\u2028\u2029\x00",
    '"><svg onload=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "\ud800 half a pair",
)


class Page(HTMLParser):
    """Elements, attributes and texts of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.scripts, self.styles, self.inside = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        elif self.inside == "style":
            self.styles.append(data)

    @property
    def data(self):
        (found,) = (text for kind, text in self.scripts if kind == "application/json")
        return json.loads(found)


def page_of(names, **given):
    detection, *_ = made(len(names), ids=names)
    return Page(render(report_of(detection, **given)))


def test_ids_titles_and_commands_stay_text():
    page = page_of(ATTACKS, title=ATTACKS[0], command=ATTACKS[1])
    plain = page_of([f"input {i}" for i in range(len(ATTACKS))], title="x", command="y")
    assert page.tags == plain.tags
    assert tuple(page.data["ids"]) == ATTACKS
    assert not any(name.startswith("on") for name, _ in page.attributes)


@hyp.given(st.lists(st.text(st.characters(codec=None), max_size=30), min_size=1, max_size=6, unique=True))
@hyp.settings(max_examples=40, deadline=None)
def test_any_id_comes_back_as_it_was(names):
    page = page_of(names, title=names[0])
    assert page.data["ids"] == names
    assert page.tags.count("script") == 2


def test_tokens_and_names_of_columns_stay_text():
    class Loud:
        def decode(self, ids):
            return f"</script><b>{ids[0]}"

    detection, *_ = made(2)
    inputs = Inputs.of({"input_ids": [[1, 2], [3]]}, ids=detection.ids)
    rows = detection.rows()
    for part in (part for row in rows for part in row["contributions"]):
        part |= {"column": f"{ATTACKS[0]} {part['column']}", "site": ATTACKS[1], "block": ATTACKS[2]}
    page = Page(render(report_of_rows(rows, inputs=inputs, tokenizer=Loud())))
    assert page.data["vocabulary"] == ["</script><b>1", "</script><b>2", "</script><b>3"]
    assert all(name.startswith(ATTACKS[0]) for name in page.data["columns"]) and page.data["blocks"] == [ATTACKS[2]]
    assert page.tags.count("script") == 2 and not {"b", "img"} & set(page.tags)


def test_the_page_allows_its_own_script_and_nothing_else(tmp_path):
    detection, *_ = made()
    labels, normal = np.arange(30) % 3 == 0, np.linspace(0.01, 1, 50)
    path = write_report(tmp_path / "report.html", detection, labels=labels, normal=normal)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    policy = policy.replace("&#39;", "'")
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy

    def hashed(source):
        return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"

    assert f"style-src {hashed(page.styles[0])};" in policy and len(page.styles) == 1
    (script,) = (source for kind, source in page.scripts if kind is None)
    assert f"script-src {hashed(script)};" in policy
    assert "innerHTML" not in script and "insertAdjacentHTML" not in script and "document.write" not in script
    assert not {"iframe", "object", "embed", "form", "img", "base"} & set(page.tags)
    assert not any(name == "style" for name, _ in page.attributes)
    for name, value in page.attributes:
        if name in ("src", "href"):
            assert value == "data:," or value.startswith("#")
    links = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert links <= {"http://www.w3.org/2000/svg"}


def test_every_input_is_in_the_data_with_its_numbers(tmp_path):
    detection, *_ = made()
    path = write_report(tmp_path / "report.html", detection, top_columns=3)
    data = Page(path.read_text(encoding="utf-8")).data
    np.testing.assert_allclose(data["score"], detection.scores, rtol=1e-5)
    np.testing.assert_allclose(data["p"], detection.p_values, rtol=1e-3)
    assert data["flag"] == "".join(str(int(flag)) for flag in detection.flags)
    for row in range(30):
        found = detection.reason(row)
        amounts = data["top"][row][1::3]
        assert len(amounts) == 3 and sum(amounts) + data["rest"][row] == pytest.approx(found.score, rel=1e-3)
        near = [data["trustedIds"][i] for i in data["nearest"][row][::2]]
        assert near == [key for key, _ in found.nearest]
    assert not list(tmp_path.glob(".*"))


def test_charts_have_titles_labels_and_values(tmp_path):
    detection, *_ = made()
    given = {"labels": np.arange(30) % 3 == 0, "normal": np.linspace(0.01, 1, 50)}
    text = write_report(tmp_path / "report.html", detection, **given).read_text(encoding="utf-8")
    flags = int(detection.flags.sum())
    assert f"<h1>{flags} of 30 inputs flagged at alpha = 0.1</h1>" in text
    for words in ("Anomaly scores", "Separation: AUROC", "P-values of normal inputs", "share of anomalous", "p-value"):
        assert words in text
    pictures = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(pictures) == 3
    for picture in pictures:
        (names,) = re.findall(r'aria-labelledby="([^"]+)"', picture)
        assert all(f'id="{name}"' in text for name in names.split())
        assert "<title>" in picture


def test_infinite_scores_are_written_as_json():
    detection, *_ = made(3)
    scores = np.array([1.0, np.inf, 2.0])
    shown = replace(detection, scores=scores)
    assert Page(render(report_of(shown))).data["score"] == [1.0, "Infinity", 2.0]


def test_lines_of_a_file_make_a_page(tmp_path):
    detection, *_ = made()
    rows = json.loads(json.dumps(detection.rows()))
    path = write_report_from_rows(tmp_path / "report.html", rows, command="causalmad report flags.jsonl")
    text = path.read_text(encoding="utf-8")
    assert Page(text).data["ids"] == list(detection.ids) and "causalmad report flags.jsonl" in text


def test_without_jinja2_it_is_said_what_to_install(monkeypatch):
    detection, *_ = made(3)
    report = report_of(detection)
    real = builtins.__import__

    def missing(name, *rest, **given):
        if name == "jinja2":
            raise ImportError(name)
        return real(name, *rest, **given)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(CausalmadError, match=r"causalmad\[report\]"):
        render(report)


def large(count=10_000, width=64, length=40):
    """A detector on many inputs with wide signatures and long texts, and what it detected."""
    toys = toy("linear", trusted=60, fresh=2)
    fitted = Detector(Activations()).fit(toys.model, toys.trusted)
    draw = np.random.default_rng(0)
    named = columns(width)
    normal = draw.normal(size=(500, width)).astype(np.float32)
    trusted = Signatures(tuple(f"{i:012x}" for i in range(500)), named, normal)
    fitted = replace(fitted, reference=Mahalanobis().fit(normal), trusted=trusted)
    values = draw.standard_t(5, size=(count, width)).astype(np.float32)
    ids = tuple(f"{i * 2_654_435_761 % 2**48:012x}" for i in range(count))
    found = Signatures(ids, named, values)
    detection = made(3)[0]
    scores = -fitted.reference.score_samples(values)
    p_values = (np.argsort(np.argsort(-scores)) + 1) / count
    detection = replace(detection, signatures=found, scores=scores, p_values=p_values, provenance=fitted.provenance)
    inputs = Inputs.of({"input_ids": draw.integers(0, 5000, (count, length))}, ids=ids)
    return fitted, detection, inputs


def test_ten_thousand_inputs_weigh_less_than_ten_megabytes(tmp_path):
    fitted, detection, inputs = large()
    labels = np.arange(10_000) % 2 == 0
    path = write_report(tmp_path / "report.html", detection, inputs=inputs, labels=labels, detector=fitted)
    assert path.stat().st_size < 10_000_000
    data = Page(path.read_text(encoding="utf-8")).data
    assert len(data["ids"]) == len(data["top"]) == len(data["tokens"]) == 10_000 and data["rows"] is None


def test_inputs_are_read_as_the_detector_reads_them(tmp_path):
    made = toy("mlp", trusted=40, fresh=6)
    fitted = Detector(Activations()).fit(made.model, made.trusted)
    plain = made.fresh.main
    detection = fitted.detect(plain, alpha=0.4)
    known = report_of(detection, inputs=fitted.model.inputs(plain), detector=fitted)
    assert render(report_of(detection, inputs=plain, detector=fitted)) == render(known)
    for refused in (
        lambda: report_of(detection, inputs=plain),
        lambda: report_of_rows(detection.rows(), inputs=["a text"]),
        lambda: report_of(detection, inputs=plain[:3], detector=fitted),
    ):
        with pytest.raises(InputsError):
            refused()


def test_a_folder_that_is_missing_is_made_and_what_cannot_be_written_is_told(tmp_path):
    detection, *_ = made()
    assert write_report(tmp_path / "new" / "deep" / "x.html", detection).is_file()
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "x.html"):
        with pytest.raises(StoreError, match="cannot be written"):
            write_report(place, detection)
        with pytest.raises(StoreError, match="cannot be written"):
            write_report_from_rows(place, detection.rows())
