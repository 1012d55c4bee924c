"""doctor on this installation, on broken ones, and on models."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from causalmad.cli import installation
from causalmad.cli.doctor import doctor


@pytest.fixture
def run() -> Callable[..., Any]:
    """The command in this process."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(doctor)

    def call(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(part) for part in arguments])

    return call


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation of which nothing is imported again, whatever is missing here."""
    monkeypatch.setattr(installation, "_requires", lambda: ["numpy>=1.26", 'no-such-thing>=2; extra == "sae"'])


def findings(done: Any) -> dict[str, dict[str, str]]:
    return {found["name"]: found for found in json.loads(done.stdout)["installation"]}


def test_this_installation(run) -> None:
    done = run("--json", "-")
    found = findings(done)
    assert done.exit_code == (2 if "bad" in {each["status"] for each in found.values()} else 0)
    assert {"python", "causalmad", "torch", "nnsight", "pyvene", "device cpu", "cache folder"} <= set(found)
    import torch

    assert found["torch"]["value"] == torch.__version__
    assert found["extra plot"]["value"].startswith("matplotlib")
    assert "extra test" not in found and "extra dev" not in found


def test_an_extra_may_be_missing(run, healthy) -> None:
    done = run("--json", "-")
    assert done.exit_code == 0
    assert findings(done)["extra sae"]["status"] == "missing"
    assert findings(done)["extra sae"]["note"] == "pip install 'causalmad[sae]'"
    assert "pip install 'causalmad[sae]'" in run().stdout


@pytest.mark.parametrize(
    ("need", "name", "said"),
    [
        ("no-such-thing>=2", "no-such-thing", "pip install 'no-such-thing>=2'"),
        ("numpy>=99", "numpy", "needed: >=99"),
        ("pytest>=1", "pytest", "cannot be imported: RuntimeError: boom"),
    ],
)
def test_what_cannot_be_done_without_is_bad(run, monkeypatch, need: str, name: str, said: str) -> None:
    def fail(module: str) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(installation, "_requires", lambda: [need])
    monkeypatch.setattr(installation, "importlib", SimpleNamespace(import_module=fail))
    done = run("--json", "-")
    assert done.exit_code == 2
    assert findings(done)[name]["status"] == "bad" and findings(done)[name]["note"] == said
    assert not json.loads(done.stdout)["holds"]


def test_a_cache_that_cannot_be_written_is_bad(run, healthy, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("CAUSALMAD_CACHE", str(tmp_path / "not" / "yet"))
    assert findings(run("--json", "-"))["cache folder"]["status"] == "good"
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CAUSALMAD_CACHE", str(tmp_path / "file"))
    done = run("--json", "-")
    assert done.exit_code == 2
    assert "cannot be written" in findings(done)["cache folder"]["note"]


def test_a_saved_model_on_made_up_inputs_and_on_a_file(run, healthy, gpt2: Path, texts: Path) -> None:
    done = run("--model", gpt2, "--json", "-")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["model"]
    assert {each["status"] for each in found["laws"]} == {"holds"}
    assert "law_padding_changes_nothing" in {each["law"] for each in found["laws"]}
    heads = next(role for role in found["roles"] if role["name"] == "heads")
    assert heads["count"] == 8 and "#head=0" in heads["first"]
    shown = run("--model", gpt2, "--inputs", texts)
    assert shown.exit_code == 0
    assert "padding changes nothing" in shown.stdout and "transformer.h.0" in shown.stdout
    assert "the first 8 of 60 inputs" in shown.stderr
    assert "the first 8" not in run("--model", gpt2, "--inputs", texts, "--quiet").stderr


def test_inputs_that_do_not_fit_are_no_broken_laws(run, healthy, gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "inputs.jsonl"
    path.write_text('{"input_ids": [5, 100000]}\n')
    done = run("--model", gpt2, "--inputs", path)
    assert done.exit_code == 2 and "BROKEN" not in done.output and "roken" not in done.output
    assert "token ids outside the vocabulary" in " ".join(done.stderr.split())


def test_the_model_of_a_task(run, healthy, stub) -> None:
    done = run("--task", "stub", "--json", "-")
    assert done.exit_code == 0, done.output
    laws = {each["law"]: each["status"] for each in json.loads(done.stdout)["model"]["laws"]}
    assert laws["law_signatures_leave_nothing"] == "holds"
    assert laws["law_padding_changes_nothing"] == "does not apply"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--inputs", "x.jsonl"), "--inputs without a model"),
        (("--model", "./no-such-folder"), "no-such-folder"),
        (("--model", "a", "--task", "b"), "--model together with --task"),
        (("--task", "gate-digit"), "gate-digits"),
    ],
)
def test_mistakes_are_one_message(run, healthy, arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not done.stdout


def test_what_a_package_prints_when_imported_is_not_among_the_numbers(run, monkeypatch, tmp_path) -> None:
    (tmp_path / "loud_of_doctor.py").write_text("print('hello')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "loud_of_doctor", raising=False)
    monkeypatch.setattr(installation, "_requires", lambda: ["loud-of-doctor"])
    monkeypatch.setattr(installation, "_version", lambda name: "1.0")
    done = run("--json", "-")
    assert done.exit_code == 0, done.output
    assert findings(done)["loud-of-doctor"]["status"] == "good" and "hello" in done.stderr
