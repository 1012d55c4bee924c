"""--cache: the second run computes nothing and says the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from causalmad.models import OpenModel


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_fit_and_detect_keep_what_they_compute(run, gpt2, texts, tmp_path, monkeypatch) -> None:
    cache, outs = tmp_path / "cache", [tmp_path / "a", tmp_path / "b"]
    given = ("--model", gpt2, "--cache", cache)
    found = []
    for number, out in enumerate(outs):
        names = ("--signature", "activations", "--batch-size", "auto")
        done = run("fit", *given, "--trusted", texts, *names, "--out", out)
        assert done.exit_code == 0, done.stderr
        lines = run("detect", out, texts, *given, "--alpha", 0.1, "--chunk", 25, "--reasons", "none")
        assert lines.exit_code == 0, lines.stderr
        found.append([json.loads(line) for line in lines.stdout.splitlines()])
        if not number:
            known = files(cache)
            assert len(known) == 2
    assert found[0] == found[1] and len(found[0]) == 60
    assert files(cache) == known
    monkeypatch.setattr(OpenModel, "run", None)  # nothing is left to run the model for
    again = run("detect", outs[0], texts, *given, "--alpha", 0.1, "--reasons", "none")
    assert again.exit_code == 0 and len(again.stdout.splitlines()) == 60
    data = bytearray(known[0].read_bytes())
    data[-1] ^= 1
    known[0].write_bytes(data)
    monkeypatch.undo()
    again = run("detect", outs[0], texts, *given, "--alpha", 0.1, "--reasons", "none")
    assert f"CacheWarning: {known[0]} is damaged" in again.stderr and again.exit_code == 0


def test_evaluate_keeps_what_it_computes(run, stub, tmp_path) -> None:
    found = []
    for _ in range(2):
        options = ("--detector", "activations+mahalanobis", "--seeds", 1, "--cache", tmp_path / "cache")
        done = run("evaluate", "--task", "stub", *options, "--json", "-")
        assert done.exit_code == 0, done.stderr
        found.append(json.loads(done.stdout)["auroc"] if "auroc" in json.loads(done.stdout) else done.stdout)
        known = files(tmp_path / "cache")
    assert known and len(files(tmp_path / "cache")) == len(known)


@pytest.mark.parametrize("text", ["0", "many", "-3", "1.5"])
def test_a_batch_size_that_is_none(run, gpt2, texts, tmp_path, text) -> None:
    done = run(
        "fit",
        "--model",
        gpt2,
        "--trusted",
        texts,
        "--signature",
        "activations",
        f"--batch-size={text}",
        "--out",
        tmp_path / "d",
    )
    assert done.exit_code == 2 and f"--batch-size {text}" in done.stderr


def test_a_cache_that_cannot_be_one(run, gpt2, texts, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    done = run(
        "fit",
        "--model",
        gpt2,
        "--trusted",
        texts,
        "--signature",
        "activations",
        "--cache",
        tmp_path / "file",
        "--out",
        tmp_path / "d",
    )
    assert done.exit_code == 2 and "CacheError" in done.stderr and "cannot be used as a cache" in done.stderr
