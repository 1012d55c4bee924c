"""A task from a user's own model and files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from causalmad import tasks
from causalmad.catalogue import catalogue
from causalmad.config import parse_spec
from causalmad.errors import CausalmadError, InputsError, ModelError, SpecError, TaskError
from causalmad.evaluation import evaluate
from causalmad.models import open_model
from causalmad.tasks import FromFiles, Task
from tests.conftest import build


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


def vectors(count: int, start: int, shift: float = 0.0) -> list[dict]:
    values = np.random.default_rng(start).normal(size=(count, 4)) + shift
    return [{"id": f"{start}-{i}", "x": row.tolist()} for i, row in enumerate(values)]


@pytest.fixture
def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """Trusted and test vectors; anomalous ones are shifted."""
    test = [{**row, "label": False, "subset": "a"} for row in vectors(30, 2)]
    test += [{**row, "label": True, "subset": "b"} for row in vectors(30, 3, shift=4)]
    return {
        "trusted": write(tmp_path / "trusted.jsonl", vectors(120, 1)),
        "test": write(tmp_path / "test.jsonl", test),
    }


@pytest.fixture(scope="module")
def texts(tmp_path_factory, tokenizer) -> dict[str, str]:
    """A folder with a tiny GPT-2 and its tokenizer, and texts of differing length."""
    folder = tmp_path_factory.mktemp("from_files")
    build("gpt2").save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")

    def rows(count: int, seed: int, low: int, high: int) -> list[dict]:
        draw = np.random.default_rng(seed)
        return [
            {"text": " ".join(f"w{k}" for k in draw.integers(low, high, draw.integers(4, 9)))} for _ in range(count)
        ]

    test = [{**row, "label": 0, "answer": 3} for row in rows(20, 2, 2, 30)]
    test += [{**row, "label": 1, "answer": 3} for row in rows(20, 3, 30, 50)]
    return {
        "model": str(folder / "model"),
        "trusted": write(folder / "trusted.jsonl", rows(100, 1, 2, 30)),
        "test": write(folder / "test.jsonl", test),
    }


def test_one_line_from_a_model_and_two_files(mlp, files) -> None:
    task = tasks.from_files(mlp, files["trusted"], files["test"], blocks={"left": (0, 2), "right": (2, 4)}, name="mine")
    assert isinstance(task, Task)
    data = task.load(0)
    assert (data.name, data.model, data.untrusted) == ("mine", mlp, None)
    assert data.test.ids == tuple(f"{part}-{i}" for part in (2, 3) for i in range(30))
    assert data.labels.tolist() == [False] * 30 + [True] * 30
    assert "label" not in data.test.columns and list(data.test.columns["subset"]) == ["a"] * 30 + ["b"] * 30
    assert data.trusted.blocks == {"left": (0, 2), "right": (2, 4)}
    want = torch.tensor([row["x"] for row in vectors(30, 2)], dtype=torch.float32)
    assert torch.equal(data.test.fields[0][:30], want)
    json.dumps(data.card)


def test_a_fourth_of_the_trusted_contents_is_held_out(mlp, files, tmp_path) -> None:
    doubled = vectors(40, 1) + [{**row, "id": row["id"] + "again"} for row in vectors(40, 1)]
    task = tasks.from_files(mlp, write(tmp_path / "doubled.jsonl", doubled), files["test"])
    data = task.load(0)
    assert (len(data.trusted), len(data.normal)) == (60, 20)
    assert not set(data.trusted.digests) & set(data.normal.digests)
    assert data.card["normal held out of trusted"] is True
    assert task.load(0).normal.ids == data.normal.ids != task.load(1).normal.ids


def test_normal_and_untrusted_files(mlp, files, tmp_path) -> None:
    normal = write(tmp_path / "normal.jsonl", vectors(50, 4))
    pool = write(tmp_path / "pool.jsonl", [{**row, "label": True} for row in vectors(20, 5)])
    data = tasks.from_files(mlp, files["trusted"], files["test"], normal, pool).load(0)
    assert (len(data.trusted), len(data.normal), len(data.untrusted)) == (120, 50, 20)
    assert "label" not in data.untrusted.columns
    assert data.card["normal held out of trusted"] is False


def test_it_can_be_evaluated(mlp, files) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    found = evaluate(tasks.from_files(model, files["trusted"], files["test"]), "input-only+mahalanobis", 1)
    assert found.seeds[0].auroc > 0.95


def test_texts_go_through_the_models_tokenizer(texts) -> None:
    data = FromFiles(**texts).load(0)
    assert data.test.tokens and len(set(data.test.lengths)) > 1
    assert data.test.main[0].tolist() == [int(word[1:]) for word in data.test.columns["text"][0].split()]
    with torch.no_grad():
        want = [data.model(row[None]).logits[0, -1].argmax().item() == 3 for row in data.test.main]
    assert data.card["accuracy"] == {"normal": np.mean(want[:20]), "anomalous": np.mean(want[20:])}


def test_on_the_command_line(texts, tmp_path) -> None:
    from typer.testing import CliRunner

    from causalmad.cli.app import app

    task = "from-files[{}]".format(",".join(f"{key}={value}" for key, value in texts.items()))
    out = tmp_path / "result.json"
    names = ["--detector", "input-only+mahalanobis", "--seeds", "1", "--json", str(out)]
    done = CliRunner().invoke(app, ["evaluate", "--task", task, *names])
    assert done.exit_code == 0, done.stderr
    assert json.loads(out.read_text())["auroc"]["mean"] > 0.9
    assert parse_spec("tasks", task).load(0).name == task


def test_text_needs_a_tokenizer_and_an_opened_model_brings_it(texts, model_of, tokenizer) -> None:
    with pytest.raises(InputsError, match="without a tokenizer"):
        tasks.from_files(model_of("gpt2"), texts["trusted"], texts["test"]).load(0)
    opened = open_model(model_of("gpt2"), tokenizer=tokenizer)
    assert tasks.from_files(opened, texts["trusted"], texts["test"]).load(0).model is model_of("gpt2")


def test_it_stands_in_the_catalogue_and_says_what_it_needs() -> None:
    names = [entry.name for entry in catalogue("tasks")]
    assert names.count("from-files") == 1 and "from_files" not in names
    with pytest.raises(TaskError, match="model, trusted, test"):
        parse_spec("tasks", "from-files").load(0)
    with pytest.raises(TaskError, match="without test"):
        FromFiles(model="m", trusted="t").load(0)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"test": [{"id": "a", "x": [1, 2, 3, 4]}]}, TaskError, "line 1 has no label"),
        ({"test": [{"x": [1, 2, 3, 4], "label": "odd"}]}, TaskError, "line 1: label 'odd'"),
        ({"test": [{"x": [1, 2, 3, 4], "label": 2}]}, TaskError, "line 1: label 2"),
        ({"test": [{"x": [1, 2, 3, i], "label": True} for i in range(3)]}, TaskError, "all 3 test inputs"),
        (
            {
                "test": [
                    {**vectors(120, 1)[7], "id": "u", "label": True},
                    {"id": "v", "x": [1, 2, 3, 4], "label": False},
                ]
            },
            TaskError,
            "'u' is '1-7' of the trusted inputs",
        ),
        ({"trusted": [{"x": [1, 2, 3, 4], "label": True}]}, TaskError, "labelled anomalous"),
        ({"trusted": [{"x": [1, 2, 3, 4]}]}, TaskError, "1 different trusted inputs"),
        ({"trusted": [{"other": 1, "input": [1.0, 2.0, 3.0, 4.0]}] * 9}, TaskError, "trusted ones with"),
        ({"trusted": "nowhere.jsonl"}, InputsError, "cannot be read"),
        ({"model": "./nowhere"}, ModelError, "no folder"),
        ({"model": 3}, ModelError, "no model"),
        ({"blocks": {"left": (0, 9)}}, InputsError, "outside the last axis"),
    ],
)
def test_what_is_wrong_is_named(change, error, said, mlp, files, tmp_path) -> None:
    given = {"model": mlp, **files, **change}
    for part in ("trusted", "test"):
        if isinstance(given[part], list):
            given[part] = write(tmp_path / f"changed-{part}.jsonl", given[part])
    with pytest.raises(error) as caught:
        tasks.from_files(**given).load(0)
    assert said in str(caught.value)


def test_blocks_as_text(mlp, files) -> None:
    options = f"trusted={files['trusted']},test={files['test']},blocks=left=0:2;right=2:4"
    assert parse_spec("tasks", f"from-files[{options}]").blocks == ("left=0:2", "right=2:4")
    with pytest.raises(SpecError, match="is no block"):
        FromFiles(mlp, files["trusted"], files["test"], blocks=("left",)).load(0)
    with pytest.raises(CausalmadError):
        FromFiles(mlp, files["trusted"], files["test"]).load(-1)
