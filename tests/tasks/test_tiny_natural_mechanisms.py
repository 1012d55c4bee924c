"""Distinctions in ARC's form, on tiny models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from causalmad.config import parse_spec
from causalmad.errors import TaskError
from causalmad.tasks import TinyNaturalMechanisms
from tests.conftest import VOCABULARY, build


def distinction(counts: tuple[int, int, int] = (60, 45, 20), low: int = 3) -> dict:
    draw = np.random.default_rng(0)

    def rows(count: int) -> list[dict]:
        prefixes = [draw.integers(2, VOCABULARY, draw.integers(low, 9)).tolist() for _ in range(count)]
        return [{"prefix_tokens": prefix, "completion_token": 3 + i % 2} for i, prefix in enumerate(prefixes)]

    parts = ("train", "test_non_anomalous", "test_anomalous")
    return {part: rows(count) for part, count in zip(parts, counts)} | {"effect_tokens": [3, 4]}


def write(path: Path, data: object) -> str:
    path.write_text(json.dumps(data))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory, tokenizer) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tiny")
    build("gpt2").save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return {"path": write(folder / "hex_task.json", distinction()), "model": str(folder / "model")}


@pytest.fixture(scope="module")
def data(files):
    return TinyNaturalMechanisms(**files).load(0)


def test_parts_are_the_files_lists(data) -> None:
    file = distinction()

    def prefixes(part: str) -> set[tuple[int, ...]]:
        return {tuple(row["prefix_tokens"]) for row in file[part]}

    def found(inputs) -> set[tuple[int, ...]]:
        return {tuple(row.tolist()) for row in inputs.main}

    assert found(data.trusted) == prefixes("train")
    assert found(data.test[data.labels]) == prefixes("test_anomalous")
    assert found(data.test[~data.labels]) | found(data.normal) == prefixes("test_non_anomalous")
    assert (len(data.normal), (~data.labels).sum(), data.untrusted) == (15, 30, None)
    completions = {
        tuple(row["prefix_tokens"]): row["completion_token"]
        for part in file
        if part != "effect_tokens"
        for row in file[part]
    }
    assert [completions[tuple(row.tolist())] for row in data.test.main] == data.test.columns["answer"].tolist()


def test_prefixes_stay_as_long_as_they_are(data) -> None:
    assert len(set(data.test.lengths)) > 2
    assert not any((row == 0).any() for row in data.test.main)


def test_the_card_says_how_often_the_behaviour_is_there(data) -> None:
    with torch.no_grad():
        said = np.array([data.model(row[None]).logits[0, -1].argmax().item() for row in data.test.main])
    assert data.card["effect"] == pytest.approx(np.isin(said, [3, 4]).mean(), abs=1e-4)
    right = said == data.test.columns["answer"]
    assert data.card["accuracy"] == {"normal": right[~data.labels].mean(), "anomalous": right[data.labels].mean()}
    json.dumps(data.card)


def test_loading_again_and_the_command_line(data, files) -> None:
    again = parse_spec("tasks", data.name)
    assert again == TinyNaturalMechanisms(**files)
    assert again.load(0).test.ids == data.test.ids != again.load(1).test.ids


def test_another_models_tokenizer_gets_the_same_words(files, tmp_path) -> None:
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    # The tokenizer of the file counts its words the other way round.
    known = {"<pad>": 0, "<end>": 1, **{f"w{i}": VOCABULARY + 1 - i for i in range(2, VOCABULARY)}}
    words = Tokenizer(models.WordLevel(known, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>").save_pretrained(tmp_path)
    found = TinyNaturalMechanisms(**files, tokenizer=str(tmp_path)).load(0)
    want = {tuple(VOCABULARY + 1 - token for token in row["prefix_tokens"]) for row in distinction()["train"]}
    assert {tuple(row.tolist()) for row in found.trusted.main} == want
    assert found.card["effect tokens"] == [VOCABULARY - 3, VOCABULARY - 2]
    assert set(found.test.columns["answer"]) == {VOCABULARY - 3, VOCABULARY - 2}


class Lens(nn.Module):
    """As much of a TransformerLens model as is used: tokens as the first argument, logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.W_E, self.unembed = nn.Embedding(VOCABULARY, 8), nn.Module()
        self.unembed.W_U = nn.Parameter(torch.zeros(8, VOCABULARY))
        self.unembed.b_U = nn.Parameter(torch.zeros(VOCABULARY))

    def forward(self, input: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.W_E(input) @ self.unembed.W_U + self.unembed.b_U


def test_transformer_lens_models_with_converted_weights(files, tmp_path, monkeypatch) -> None:
    asked = {}

    def from_pretrained(name: str, **options: bool) -> nn.Module:
        asked.update(options, name=name)
        return Lens()

    stand_in = SimpleNamespace(HookedTransformer=SimpleNamespace(from_pretrained=from_pretrained))
    monkeypatch.setitem(sys.modules, "transformer_lens", stand_in)
    weights = {"W_E.weight": torch.randn(VOCABULARY, 8), "unembed.W_U": torch.randn(8, VOCABULARY)}
    save_file(weights, tmp_path / "main.safetensors")
    task = TinyNaturalMechanisms(files["path"], weights=str(tmp_path / "main.safetensors"))
    data = task.load(0)
    assert asked.pop("name") == "attn-only-1l" and not any(asked.values())
    assert torch.equal(data.model.unembed.W_U, weights["unembed.W_U"]) and not data.model.training
    save_file({"W_E.weight": weights["W_E.weight"]}, tmp_path / "main.safetensors")
    with pytest.raises(TaskError, match=r"unembed\.W_U"):
        task.load(0)
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    with pytest.raises(TaskError, match="pip install transformer-lens"):
        task.load(0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"effect_tokens": []}, "has no effect_tokens"),
        ({"train": [{"prefix": [2]}]}, "row 0 of train"),
        ({"test_anomalous": [[[2, 3], 4]] * 12}, "too few inputs: 1 odd"),
        ({"test_anomalous": distinction()["train"][:12]}, "too few inputs: 0 odd"),
    ],
)
def test_files_that_do_not_fit_are_refused(change, said, files, tmp_path) -> None:
    path = write(tmp_path / "task.json", distinction() | change)
    with pytest.raises(TaskError) as caught:
        TinyNaturalMechanisms(path, files["model"]).load(0)
    assert said in str(caught.value)


def test_what_is_missing_is_named(files) -> None:
    with pytest.raises(TaskError, match="without path"):
        TinyNaturalMechanisms().load(0)
    with pytest.raises(TaskError, match="cannot be read"):
        TinyNaturalMechanisms("nowhere.json", files["model"]).load(0)
    with pytest.raises(TaskError, match="weights with a folder"):
        TinyNaturalMechanisms(**files, weights="main.safetensors").load(0)
