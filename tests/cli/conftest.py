"""The command line in this process, a saved model, and a task that needs no training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from causalmad import catalogue
from causalmad.cli.app import app


@pytest.fixture
def run() -> Callable[..., Any]:
    """A function from arguments (and standard input) to what the program did."""

    def call(*arguments: object, stdin: str | None = None) -> Any:
        return CliRunner().invoke(app, [str(part) for part in arguments], input=stdin)

    return call


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The task ``stub``, declared as a plug-in's."""

    def points(group: str) -> list[EntryPoint]:
        return [EntryPoint("stub", "tests.stub_task:Stub", group)] if group == "causalmad.tasks" else []

    catalogue.catalogue.cache_clear()
    monkeypatch.setattr(catalogue, "entry_points", points)
    yield
    catalogue.catalogue.cache_clear()


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Folder of a tiny GPT-2 with its tokenizer."""
    from tests.conftest import build

    folder = tmp_path_factory.mktemp("models") / "gpt2"
    build("gpt2").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty texts of differing length, which end in w2 or w3, as JSON lines."""
    path = tmp_path_factory.mktemp("data") / "trusted.jsonl"
    path.write_text("\n".join(json.dumps({"id": f"t{i}", "text": text}) for i, text in enumerate(words(60, 0))) + "\n")
    return path


def words(count: int, seed: int) -> list[str]:
    draw = np.random.default_rng(seed)
    starts = [draw.integers(2, 50, draw.integers(3, 8)) for _ in range(count)]
    return [" ".join(f"w{k}" for k in (*start, draw.integers(2, 4))) for start in starts]
