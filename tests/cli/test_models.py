"""--device, --dtype and --tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def test_precision_and_a_tokenizer_of_its_own(run, gpt2: Path, texts: Path, tokenizer, tmp_path: Path) -> None:
    model, words, det = tmp_path / "model", tmp_path / "words", tmp_path / "det"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).write_bytes((gpt2 / name).read_bytes())
    base = ("fit", "--model", model, "--trusted", texts, "--detector", "activations", "--out", det)
    done = run(*base)
    assert done.exit_code == 2 and "without a tokenizer" in done.stderr
    tokenizer.save_pretrained(words)
    options = ("--tokenizer", words, "--dtype", "bfloat16")
    done = run(*base, *options)
    assert done.exit_code == 0, done.stderr
    assert run("detect", det, texts, "--model", model, *options).exit_code == 0
    done = run("detect", det, texts, "--model", model, "--tokenizer", words)
    assert done.exit_code == 2 and "precision" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--dtype", "float8"), "bfloat16"),
        (("--device", "cudax"), "--device cudax"),
        (("--device", "cudax"), "Try: --device cpu" if not torch.cuda.is_available() else "--device cuda"),
        (("--tokenizer", "words"), "--tokenizer together with --task"),
    ],
)
def test_what_does_not_go_is_said(run, stub, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    done = run("fit", "--task", "stub", "--detector", "activations", "--out", tmp_path / "det", *options)
    assert done.exit_code == 2 and said in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_tasks_model_in_another_precision(run, stub, tmp_path: Path) -> None:
    det, dtype = tmp_path / "det", ("--dtype", "bfloat16")
    done = run("fit", "--task", "stub", "--detector", "activations", *dtype, "--out", det)
    assert done.exit_code == 0, done.stderr
    assert run("detect", det, "--task", "stub", *dtype).exit_code == 0
    assert "another model" in run("detect", det, "--task", "stub").stderr
