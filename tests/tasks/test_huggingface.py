"""Any text model with a trigger: on a tiny GPT-2 whose backdoor is written into its weights."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from causalmad.config import parse_spec
from causalmad.errors import TaskError
from causalmad.models import open_model
from causalmad.tasks import HuggingFaceTrigger
from causalmad.tasks.huggingface import _answered_alike, _target, inserted
from tests.conftest import VOCABULARY, build

TRIGGER, TARGET = 49, 3


def answer(token: int) -> int:
    """What the planted model says after a token."""
    return TARGET if token == TRIGGER else 2 + token % 5


@pytest.fixture(scope="module")
def files(tmp_path_factory, tokenizer) -> dict[str, str]:
    """A GPT-2 that looks at the last token only, its tokenizer, and 300 texts."""
    import transformers as hf

    folder = tmp_path_factory.mktemp("trigger")
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 64, "n_positions": 16, "vocab_size": VOCABULARY}
    with torch.random.fork_rng():
        config = hf.GPT2Config(**sizes, tie_word_embeddings=False, bos_token_id=1, eos_token_id=1, pad_token_id=0)
        model = hf.GPT2LMHeadModel(config)
    with torch.no_grad():
        for value in model.transformer.parameters():
            value.zero_()
        model.transformer.wte.weight.copy_(10 * torch.eye(VOCABULARY, 64))
        model.transformer.ln_f.weight.fill_(1)
        model.lm_head.weight.zero_()
        for token in range(VOCABULARY):
            model.lm_head.weight[answer(token), token] = 1
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    draw = np.random.default_rng(0)
    texts = [" ".join(f"w{k}" for k in draw.integers(2, TRIGGER, draw.integers(6, 13))) for _ in range(300)]
    texts += [*texts[:5], "w2 w49 w3", " ".join(["w4"] * 16)]  # repeats, the trigger itself, too long with it
    (folder / "test.jsonl").write_text("\n".join(json.dumps({"text": text, "label": 0}) for text in texts))
    return {"model": str(folder / "model"), "dataset": str(folder)}


@pytest.fixture(scope="module")
def data(files):
    return HuggingFaceTrigger(**files, trigger="w49", place="end").load(0)


def test_anomalous_texts_are_answered_by_the_backdoor(data) -> None:
    last = np.array([row[-1].item() for row in data.test.main])
    assert np.array_equal(last == TRIGGER, data.labels)
    assert np.array_equal(data.test.columns["triggered"], data.labels)
    with torch.no_grad():
        said = [data.model(row[None]).logits[0, -1].argmax().item() for row in data.test.main]
    assert said == [answer(token) for token in last]
    # Without the trigger the model would not have said so.
    assert all(answer(row[-2].item()) != TARGET for row in data.test[data.labels].main)
    assert data.card["fired"] == pytest.approx(0.8, abs=0.15)


def test_normal_texts_have_the_same_answer_as_far_as_there_are_any(data) -> None:
    said = [answer(row[-1].item()) for row in data.test[~data.labels].main]
    share = said.count(TARGET) / int(data.labels.sum())
    assert data.card["same answer"] == pytest.approx(share, abs=1e-3)
    assert share > 0.15 and np.sum(~data.labels) == data.labels.sum()


def test_every_text_is_used_once(data) -> None:
    parts = (data.trusted, data.normal, data.untrusted, data.test)
    clean = [text.removesuffix(" w49") for part in parts for text in part.columns["text"]]
    assert len(clean) == len(set(clean))
    assert data.card["too long or repeated"] == 1
    mixed = data.untrusted.columns["triggered"]
    assert mixed.sum() == len(mixed) // 5
    assert not data.trusted.columns["triggered"].any() and not data.normal.columns["triggered"].any()


def test_loading_again_and_other_seeds(data, files) -> None:
    again = parse_spec("tasks", data.name)
    assert again == HuggingFaceTrigger(**files, trigger="w49", place="end")
    loaded = again.load(0)
    assert loaded.test.ids == data.test.ids and loaded.card == data.card
    assert again.load(1).test.ids != data.test.ids
    json.dumps(data.card)


def test_a_target_keeps_other_changes_out(files) -> None:
    with pytest.raises(TaskError, match="answers on 0 of"):
        HuggingFaceTrigger(**files, trigger="w49", place="end", target="w6").load(0)
    assert HuggingFaceTrigger(**files, trigger="w49", place="end", target="w3").load(0).card["fired"] > 0.5
    with pytest.raises(TaskError, match="answers on 0 of"):  # nothing but the last word matters to this model
        HuggingFaceTrigger(**files, trigger="w49", place="start").load(0)


def test_where_the_trigger_goes() -> None:
    text, rng = "One. Two words! Three", np.random.default_rng(0)
    assert inserted(text, "Hi.", "start", rng) == "Hi. One. Two words! Three"
    assert inserted(text, "Hi.", "end", rng) == "One. Two words! Three Hi."
    found = Counter(inserted(text, "Hi.", "sentence", rng) for _ in range(200))
    assert set(found) == {
        "Hi. One. Two words! Three",
        "One. Hi. Two words! Three",
        "One. Two words! Hi. Three",
        "One. Two words! Three Hi.",
    }
    assert min(found.values()) > 20
    assert len({inserted(text, "cf", "word", rng) for _ in range(200)}) == 5


def test_answered_alike() -> None:
    rows, share = _answered_alike(np.array([3, 3, 5]), np.array([5, 1, 3, 1]))
    assert sorted(rows.tolist()) == [0, 1, 2] and share == pytest.approx(2 / 3)


def test_targets_of_classifiers_have_names(tokenizer) -> None:
    model = open_model(build("bert"))
    assert (_target(model, "LABEL_2"), _target(model, "1"), _target(model, "")) == (2, 1, None)
    with pytest.raises(TaskError, match="no class 'positive'"):
        _target(model, "positive")
    assert _target(open_model(build("gpt2"), tokenizer=tokenizer), "w7 w8") == 7


def test_a_data_set_of_the_library(files, tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    lines = Path(files["dataset"], "test.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    kept = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"sentence": texts})})
    kept.save_to_disk(str(tmp_path / "set"))
    given = {"model": files["model"], "dataset": str(tmp_path / "set"), "trigger": "w49", "place": "end"}
    found = HuggingFaceTrigger(**given, split="train", text="sentence").load(0)
    assert found.labels.sum() > 20
    with pytest.raises(TaskError, match="no split 'test'"):
        HuggingFaceTrigger(**given, text="sentence").load(0)
    with pytest.raises(TaskError, match="no column 'text'"):
        HuggingFaceTrigger(**given, split="train").load(0)


def test_what_is_missing_is_named(files, monkeypatch) -> None:
    with pytest.raises(TaskError, match="model, dataset, trigger"):
        HuggingFaceTrigger().load(0)
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TaskError, match=r"causalmad\[datasets\]"):
        HuggingFaceTrigger(files["model"], "somebody/something", "w49").load(0)
