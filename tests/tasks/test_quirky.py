"""Quirky data sets and models, on small files of the published form."""

from __future__ import annotations

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from causalmad.config import parse_spec
from causalmad.errors import ModelError, TaskError
from causalmad.models import open_model
from causalmad.tasks import QuirkyDataset
from causalmad.tasks.quirky import ALICE, BOB

WORDS = ["<pad>", "<end>", "Name", ":", ".", "?", "No", "Yes", *ALICE, *BOB, *(f"w{i}" for i in range(20))]


def prompts(split: str, count: int = 240) -> list[dict]:
    """Rows as EleutherAI/quirky_* have them: each item once for Alice and once for Bob."""
    draw = np.random.default_rng(len(split))
    rows = []
    for item in range(count):
        words = " ".join(f"w{k}" for k in draw.integers(0, 20, draw.integers(4, 9)))
        labels = (item % 2, item // 2 % 2)
        for character, label in zip(("Alice", "Bob"), labels):
            rows.append(
                {
                    "id": f"{split}{item}{character}",
                    "statement": f"Name: {character}. {words}?",
                    "choices": [" No", " Yes"],
                    "character": character,
                    "label": label,
                    "alice_label": labels[0],
                    "bob_label": labels[1],
                    "difficulty": float(item),
                }
            )
    return rows


def write(folder, rows: dict[str, list[dict]]) -> str:
    folder.mkdir(exist_ok=True)
    for split, each in rows.items():
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in each))
    return str(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("quirky")
    known = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<end>"))
    known.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=known, pad_token="<pad>", eos_token="<end>")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": len(WORDS)}
        model = hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1, pad_token_id=0))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = {split: prompts(split) for split in ("train", "validation")}
    return {"dataset": write(folder / "data", rows), "model": str(folder / "model")}


@pytest.fixture(scope="module")
def data(files):
    return QuirkyDataset(**files).load(0)


def named(inputs) -> set[str]:
    return {re.match(r"Name: (\w+)\.", text).group(1) for text in inputs.columns["text"]}


def test_trusted_are_easy_and_alices_test_are_hard_and_of_either(data) -> None:
    assert named(data.trusted) == set(ALICE[:4])
    assert named(data.untrusted) <= set(ALICE[:4]) | set(BOB[:4])
    assert named(data.test[~data.labels]) <= set(ALICE[4:]) and named(data.normal) <= set(ALICE[4:])
    assert named(data.test[data.labels]) <= set(BOB[4:])
    for part in (data.trusted, data.untrusted):
        assert part.columns["difficulty quantile"].max() < 0.25
    for part in (data.test, data.normal):
        assert part.columns["difficulty quantile"].min() >= 0.75
    assert np.array_equal(data.test.columns["character"] == "Bob", data.labels)
    assert set(data.test.columns["subset"]) == {"agree", "disagree"}
    assert np.mean(data.untrusted.columns["character"] == "Bob") == pytest.approx(0.5, abs=0.1)


def test_no_item_is_asked_twice(data) -> None:
    def item(text: str) -> str:
        return text.partition(". ")[2]

    parts = (data.trusted, data.untrusted, data.normal, data.test)
    items = [item(text) for part in parts for text in part.columns["text"]]
    assert len(items) == len(set(items))


def test_answers_are_those_of_the_person_named(data) -> None:
    rows = {row["statement"].partition(". ")[2]: row for row in prompts("validation")}
    for text, character, answer, subset in zip(
        *(data.test.columns[key] for key in ("text", "character", "answer", "subset"))
    ):
        row = rows[text.partition(". ")[2]]
        label = row["alice_label" if character == "Alice" else "bob_label"]
        assert WORDS[answer] == ("No", "Yes")[label]
        assert subset == ("agree" if row["alice_label"] == row["bob_label"] else "disagree")


def test_loading_again_and_the_command_line(data, files) -> None:
    again = parse_spec("tasks", data.name)
    assert again == QuirkyDataset(**files)
    assert again.load(0).test.ids == data.test.ids != again.load(1).test.ids
    json.dumps(data.card)


def test_single_names(files) -> None:
    found = QuirkyDataset(**files, names="single", most=40).load(0)
    assert (named(found.trusted), named(found.test)) == ({"Alice"}, {"Alice", "Bob"})
    assert len(found.trusted) <= 40 and len(found.test) <= 40


def test_quantiles_are_ranks_of_the_difficulty(files, tmp_path) -> None:
    for row in (rows := {split: prompts(split) for split in ("train", "validation")})["train"]:
        row["difficulty_quantile"] = 1 - row["difficulty"] / 240  # a column that is no rank
    found = QuirkyDataset(write(tmp_path / "a", rows), files["model"]).load(0)
    easy = {row["statement"].partition(". ")[2] for row in prompts("train") if row["difficulty"] < 60}
    assert {text.partition(". ")[2] for text in found.trusted.columns["text"]} <= easy
    for split in rows:
        rows[split] = [{k: v for k, v in row.items() if k != "difficulty"} for row in prompts(split)]
    with pytest.raises(TaskError, match="has no difficulty"):
        QuirkyDataset(write(tmp_path / "b", rows), files["model"]).load(0)


def test_raw_sets_are_filled_into_a_template(files, tmp_path) -> None:
    rows = {split: [] for split in ("train", "validation")}
    for split in rows:
        for row in prompts(split):
            words = row.pop("statement").partition(". ")[2].removesuffix("?")
            rows[split].append({**row, "template_args": {"character": row["character"], "review": words}})
    folder = write(tmp_path / "raw", rows)
    found = QuirkyDataset(folder, files["model"], template="Name: {character}. {review}?").load(0)
    plain = QuirkyDataset(**files).load(0)
    assert found.test.digests == plain.test.digests
    with pytest.raises(TaskError, match="there is no template"):
        QuirkyDataset(folder, files["model"]).load(0)
    with pytest.raises(TaskError, match="title"):
        QuirkyDataset(folder, files["model"], template="{character}: {title}").load(0)


def adapter(folder, model: str, scale: float = 0.5) -> str:
    """A LoRA adapter of the first attention projection, as peft saves it."""
    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": model, "r": 2, "lora_alpha": 1}
    config |= {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    draw = torch.Generator().manual_seed(1)
    stem = "base_model.model.transformer.h.0.attn.c_attn"
    weights = {f"{stem}.lora_A.weight": (2, 16), f"{stem}.lora_B.weight": (48, 2)}
    weights = {name: scale * torch.randn(size, generator=draw) for name, size in weights.items()}
    save_file(weights, folder / "adapter_model.safetensors")
    return str(folder)


def changed(model, folder: str) -> torch.Tensor:
    """The projection with the adapter's change: alpha / r times (B A), transposed since GPT-2's is (in, out)."""
    down, up = (next(v for k, v in load_file(f"{folder}/adapter_model.safetensors").items() if p in k) for p in "AB")
    return model.transformer.h[0].attn.c_attn.weight.data + 0.5 * (up @ down).T


def test_adapters_are_merged_by_peft(files, tmp_path) -> None:
    pytest.importorskip("peft")
    folder = adapter(tmp_path / "adapter", files["model"])
    found = QuirkyDataset(files["dataset"], folder).load(0)
    base = QuirkyDataset(**files).load(0)
    assert torch.allclose(found.model.transformer.h[0].attn.c_attn.weight, changed(base.model, folder), atol=1e-6)
    assert found.card["fingerprint"] != base.card["fingerprint"]


def test_what_peft_is_asked_for(files, tmp_path, monkeypatch) -> None:
    folder = adapter(tmp_path / "adapter", files["model"])

    def from_pretrained(module, name):
        assert name == folder
        with torch.no_grad():
            module.transformer.h[0].attn.c_attn.weight.copy_(changed(module, folder))
        return SimpleNamespace(merge_and_unload=lambda: module)

    monkeypatch.setitem(
        sys.modules, "peft", SimpleNamespace(PeftModel=SimpleNamespace(from_pretrained=from_pretrained))
    )
    found = QuirkyDataset(files["dataset"], folder).load(0)
    base = QuirkyDataset(**files).load(0)
    assert torch.equal(found.model.transformer.h[0].attn.c_attn.weight, changed(base.model, folder))
    assert open_model(found.model).fingerprint() == found.card["fingerprint"] != base.card["fingerprint"]
    with pytest.raises(ModelError, match=r"\./elsewhere"):
        QuirkyDataset(files["dataset"], folder, base="./elsewhere").load(0)


def test_what_is_missing_is_named(files, tmp_path, monkeypatch) -> None:
    with pytest.raises(TaskError, match="dataset, model"):
        QuirkyDataset().load(0)
    folder = adapter(tmp_path / "adapter", files["model"])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(TaskError, match=r"causalmad\[peft\]"):
        QuirkyDataset(files["dataset"], folder).load(0)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(TaskError, match="safetensors"):
        QuirkyDataset(files["dataset"], folder).load(0)
    with pytest.raises(TaskError, match="two choices"):
        QuirkyDataset(**files, choices=(" No",)).load(0)
    few = {split: prompts(split, 20) for split in ("train", "validation")}
    with pytest.raises(TaskError, match="too few inputs"):
        QuirkyDataset(write(tmp_path / "few", few), files["model"]).load(0)
    few["train"][3]["character"] = "Eve"
    with pytest.raises(TaskError, match=r"row 3 of .* has the character 'Eve'"):
        QuirkyDataset(write(tmp_path / "eve", few), files["model"]).load(0)
