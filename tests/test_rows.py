"""JSON lines as inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from causalmad.errors import InputsError
from causalmad.inputs import Inputs
from causalmad.models import open_model
from causalmad.rows import as_inputs, chunked, each_row, read_rows

MLP = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))


@pytest.fixture
def inputs(tmp_path: Path) -> Callable[..., Inputs]:
    def read(lines: list[Any], model: Any = MLP, **options: Any) -> Inputs:
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return as_inputs(read_rows(str(path)), open_model(model, **options))

    return read


def test_the_one_list_of_numbers_is_the_first_argument(inputs) -> None:
    found = inputs([{"id": 7, "x": [1, 2], "who": "me"}, "", {"id": "b", "x": [0.5, -1], "who": "you"}])
    assert found.ids == ("7", "b")
    assert list(found.fields) == [0]
    assert torch.equal(found.main, torch.tensor([[1.0, 2.0], [0.5, -1.0]]))
    assert list(found.columns["who"]) == ["me", "you"]


def test_arguments_of_the_model_go_by_name(inputs) -> None:
    found = inputs([{"input": [1, 2], "other": [1, 2, 3]}])
    assert list(found.fields) == ["input"]
    assert found.main.dtype == torch.float32


def test_tokens_and_texts(inputs, model_of, tokenizer) -> None:
    found = inputs([{"input_ids": [5, 3, 8]}, {"input_ids": [4]}], model_of("gpt2"))
    assert [row.tolist() for row in found.main] == [[5, 3, 8], [4]]
    texts = inputs([{"id": "a", "text": "w5 w3 w8"}], model_of("gpt2"), tokenizer=tokenizer)
    assert texts.main.tolist() == [[5, 3, 8]]


def test_an_id_is_never_taken_for_the_text(inputs, model_of, tokenizer) -> None:
    with pytest.raises(InputsError, match="no field holds"):
        inputs([{"id": "w5", "n": 3}], model_of("gpt2"), tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"x": [1, 2]}, "{"], "line 2 is no JSON"),
        ([{"x": [1, 2]}, "", "[1, 2]"], "line 3 is a list"),
        (['{"x": [1, NaN]}'], "line 1 is no JSON: NaN"),
        (["\ud800".encode("utf-8", "surrogatepass").decode("latin-1")], "line 1"),
        ([{"x": [1, 2]}, {"y": [1, 2]}], "line 2 has other fields than"),
        ([{"x": [1, 2]}, {"x": [1, 2], "id": 1}], "'id' in one only"),
        ([{"x": [1, 2], "id": "1"}, {"x": [1, 2], "id": 1}], "line 2: id '1' stands in"),
        ([{"x": [1, 2], "id": [1]}], "id [1]"),
        ([{"x": [1, 2]}, {"x": [1, 2, 3]}], "line 2: field 'x' has shape (3,)"),
        ([{"x": [1, "a"]}], "line 1: field 'x' is no array"),
        ([{"x": [1, 2], "y": [1, 2]}], "several fields"),
        ([{"n": 3}], "no field holds"),
        ([{"input_ids": [1, 2.5]}], "whole numbers"),
        ([{"text": "hello"}], "without a tokenizer"),
        ([], "has no lines"),
    ],
)
def test_bad_lines_are_named(inputs, lines: list[Any], said: str) -> None:
    with pytest.raises(InputsError) as caught:
        inputs(lines)
    assert said in str(caught.value)


@pytest.fixture
def chunks(tmp_path: Path) -> Callable[..., list[Inputs]]:
    def read(lines: list[Any], size: int, model: Any = MLP) -> list[Inputs]:
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
        return list(chunked(each_row(str(path)), open_model(model), size=size))

    return read


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_chunks_are_the_whole_in_pieces(inputs, chunks, size: int, named: bool) -> None:
    numbers = [[1, 2], [3, 4], [1, 2], [1, 2], [5, 6], [3, 4], [7, 8]]
    lines = [{"x": x, "who": f"w{i}", **({"id": i} if named else {})} for i, x in enumerate(numbers)]
    whole, parts = inputs(lines), chunks(lines, size)
    assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
    assert [key for part in parts for key in part.ids] == list(whole.ids)
    assert [key for part in parts for key in part.digests] == list(whole.digests)
    assert torch.equal(torch.cat([part.main for part in parts]), whole.main)
    assert [who for part in parts for who in part.columns["who"]] == list(whole.columns["who"])


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ({"id": "a", "x": [1, 2]}, "line 5: id 'a' stands in an earlier line"),
        ({"id": "e", "x": [1, 2, 3]}, "line 5: field 'x' has shape (3,), in"),
        ({"id": "e", "y": [1, 2]}, "line 5 has other fields than"),
        ({"id": "e", "x": "text"}, "line 5: field 'x' is no array"),
    ],
)
def test_lines_of_differing_chunks_fit_each_other(chunks, last: dict[str, Any], said: str) -> None:
    lines = [{"id": name, "x": [1, 2]} for name in "abcd"]
    with pytest.raises(InputsError) as caught:
        chunks([*lines, last], 2)
    assert said in str(caught.value)


def test_a_stream_is_read_no_further_than_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"x": [1, 2]}\n{"x": [3, 4]}\nbroken\n')
    found = chunked(each_row(str(path)), open_model(MLP), size=1)
    assert [len(next(found)), len(next(found))] == [1, 1]
    with pytest.raises(InputsError, match="line 3 is no JSON"):
        next(found)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"text,label\nw1 w2,0\n", "pandas.read_csv"),
        ("a.parquet", b"PAR1\x15\x04\x15\xff\n", "pandas.read_parquet"),
        ("a.json", b"[\n{}]", "pandas.read_json"),
        ("a.json", b"[{}]", "pandas.read_json"),
    ],
)
def test_files_of_other_kinds_are_told_how_to_become_lines(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputsError, match=r"is no JSON|is a list") as caught:
        read_rows(str(path))
    assert said in caught.value.tries[0] and "a.jsonl" in caught.value.tries[0]
