"""Models and tokenizers by folder or by name, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from causalmad.errors import ModelError
from causalmad.models import pretrained
from causalmad.models.pretrained import open_pretrained
from tests.conftest import build


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small-gpt2"
    build("gpt2").save_pretrained(path)
    return path


@pytest.fixture
def unplugged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_reachable", lambda endpoint: False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_precision(folder: Path, dtype: str) -> None:
    module, tokenizer = open_pretrained(str(folder), dtype=dtype)
    assert {value.dtype for value in module.parameters()} == {getattr(torch, dtype)}
    assert not module.training and tokenizer is None


def test_unknown_precision(folder: Path) -> None:
    with pytest.raises(ModelError, match="float32 or bfloat16 or float16"):
        open_pretrained(str(folder), dtype="float8")


def test_a_tokenizer_of_its_own(folder: Path, tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "words")
    _, found = open_pretrained(str(folder), tokenizer=str(tmp_path / "words"))
    assert found is not None and found(["w5 w7"])["input_ids"] == [[5, 7]]
    with pytest.raises(ModelError, match="holds no tokenizer"):
        open_pretrained(str(folder), tokenizer=str(folder))
    with pytest.raises(ModelError, match="is no folder"):
        open_pretrained(str(folder), tokenizer=str(tmp_path / "word"))


@pytest.mark.parametrize("name", ["./small-gpt", "/nowhere/model", "a/b/c", "model/", "two words", "~nobody/model"])
def test_what_looks_like_a_path_is_never_asked_of_the_hub(monkeypatch, name: str) -> None:
    monkeypatch.setattr(pretrained, "_reachable", lambda endpoint: pytest.fail("the hub was asked"))
    with pytest.raises(ModelError, match="is no folder"):
        open_pretrained(name)


def test_a_folder_of_almost_that_name_is_offered(monkeypatch, folder: Path, unplugged) -> None:
    monkeypatch.chdir(folder.parent)
    for name in ("small-gpt", "./smal-gpt2", str(folder.parent / "small_gpt2")):
        with pytest.raises(ModelError, match="is no folder") as caught:
            open_pretrained(name)
        assert Path(caught.value.tries[0]).resolve() == folder


def test_without_a_network_it_is_said_at_once(monkeypatch, unplugged, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        open_pretrained("nobody/no-such-model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        open_pretrained("no-such-model")


def test_nobody_answers_at_a_closed_port(monkeypatch) -> None:
    import socket

    monkeypatch.setattr(pretrained, "getproxies", dict)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        assert not pretrained._reachable(f"http://127.0.0.1:{held.getsockname()[1]}")
        held.listen()
        assert pretrained._reachable(f"http://127.0.0.1:{held.getsockname()[1]}")
        monkeypatch.setattr(pretrained, "getproxies", lambda: {"https": f"http://127.0.0.1:{held.getsockname()[1]}"})
        monkeypatch.setattr(pretrained, "proxy_bypass", lambda host: False)
        assert pretrained._reachable("https://hub.invalid")
