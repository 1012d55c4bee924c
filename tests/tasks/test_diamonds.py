"""Measurement predictors and their data, on small checkpoints and files of the published form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from causalmad.config import parse_spec
from causalmad.errors import ModelError, TaskError
from causalmad.evaluation import evaluate_seed
from causalmad.models import open_model
from causalmad.names import parse_detector
from causalmad.tasks import Diamonds
from causalmad.tasks.sensors import MeasurementPredictor, load_predictor

WORDS = 30
OMIT = 7  # the sensor token


def backbone(kind: str) -> nn.Module:
    import transformers as hf

    words = {"vocab_size": WORDS, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if kind == "codegen":
            return hf.CodeGenModel(
                hf.CodeGenConfig(n_layer=2, n_head=4, n_embd=32, rotary_dim=4, n_positions=48, **words)
            )
        sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
        return hf.GPTNeoXModel(hf.GPTNeoXConfig(**sizes, max_position_embeddings=48, **words))


def checkpoint(folder: Path, kind: str = "codegen", later: bool = True) -> dict[str, torch.Tensor]:
    """Writes what the published checkpoints hold, and gives the probes."""
    folder.mkdir(exist_ok=True)
    model = backbone(kind)
    draw = torch.Generator().manual_seed(4)
    probes = {f"sensor_probes.{i}": (1, 32) for i in range(3)} | {"aggregate_probe": (1, 32)}
    probes = {f"{name}.weight": torch.randn(size, generator=draw) for name, size in probes.items()}
    probes |= {name.replace("weight", "bias"): torch.randn(1, generator=draw) for name in list(probes)}
    weights = {f"{model.base_model_prefix}.{name}": value.clone() for name, value in model.state_dict().items()}
    save_file({**weights, **probes}, folder / "model.safetensors")
    config = model.config.to_dict() | {"model_type": f"{kind}_mp", "n_sensors": 3, "sensor_token_id": OMIT}
    config |= {"architectures": ["Predictor"], "auto_map": {"AutoConfig": "configuration.Predictor"}}
    config |= {"sensor_loc_type": "locs_from_token"} if later else {"use_aggregated": True}
    (folder / "config.json").write_text(json.dumps(config))
    return probes


def tokenizer_in(folder: Path) -> None:
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = {"<pad>": 0, "<end>": 1, "omit": OMIT, **{f"w{i}": i for i in range(2, WORDS) if i != OMIT}}
    words = Tokenizer(models.WordLevel(known, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)


def rows(count: int, seed: int) -> list[dict]:
    """Programs with three sensors; one in four is tampered with, one in four fails."""
    draw = np.random.default_rng(seed)
    found = []
    for i in range(count):
        words = [" ".join(f"w{k}" for k in draw.integers(8, WORDS, draw.integers(2, 7))) for _ in range(3)]
        found.append(
            {
                "text": " omit ".join(words) + " omit w2 w3",
                "measurements": [True, True, i % 4 != 3],
                "is_correct": i % 4 < 2,
                "is_clean": i % 5 == 0,
                "difficulty": 0,
            }
        )
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("diamonds")
    checkpoint(folder / "model")
    tokenizer_in(folder / "model")
    for split, count in (("train", 200), ("validation", 120)):
        lines = [json.dumps(row) for row in rows(count, len(split))]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def data(folder):
    return Diamonds(str(folder), str(folder / "model")).load(0)


@pytest.mark.parametrize("kind", ["codegen", "gpt_neox"])
@pytest.mark.parametrize("later", [True, False])
def test_log_odds_are_those_of_the_probes_row_by_row(kind, later, tmp_path) -> None:
    probes = checkpoint(tmp_path / "m", kind, later)
    tokenizer_in(tmp_path / "m")
    model, _ = load_predictor(str(tmp_path / "m"))
    plain = backbone(kind).eval()
    texts = [[9, OMIT, 8, OMIT, 20, 21, OMIT, 5, 6], [OMIT, OMIT, 11, 12, 13, OMIT]]
    want = []
    with torch.no_grad():
        for text in texts:
            hidden = plain(input_ids=torch.tensor([text])).last_hidden_state[0]
            spots = [i for i, token in enumerate(text) if token == OMIT]
            names = ["sensor_probes.0", "sensor_probes.1", "sensor_probes.2", "aggregate_probe"]
            reads = [*spots, spots[-1] if later else len(text) - 1]
            want.append([hidden[at] @ probes[f"{n}.weight"][0] + probes[f"{n}.bias"][0] for n, at in zip(names, reads)])
        for side in ("left", "right"):
            opened = open_model(model, side=side)
            for batch in opened.batches(opened.inputs([{"input_ids": text} for text in texts])):
                _, kwargs = batch.call
                assert torch.allclose(model.measurements(**kwargs), torch.tensor(want), atol=1e-5)
                assert torch.allclose(opened.logits(batch)[:, 1], torch.tensor(want)[:, 3], atol=1e-5)
                assert torch.equal(opened.logits(batch)[:, 0], torch.zeros(2))
                # Told where its sensors are, the model reads there whatever token is there.
                sensors = torch.tensor([[i for i, token in enumerate(text) if token == OMIT] for text in texts])
                assert torch.allclose(model.measurements(**kwargs, sensors=sensors), torch.tensor(want), atol=1e-5)
                other = torch.where(kwargs["input_ids"] == OMIT, 9, kwargs["input_ids"])
                assert model.measurements(**{**kwargs, "input_ids": other}, sensors=sensors).shape == (2, 4)


def test_without_an_aggregate_the_sensors_are_independent() -> None:
    model = MeasurementPredictor(backbone("codegen"), "transformer", OMIT, 3, aggregate=False, last=False).eval()
    ids = torch.tensor([[9, OMIT, 8, OMIT, 20, OMIT]])
    with torch.no_grad():
        each = model.measurements(ids).sigmoid()
        assert torch.allclose(model(ids).sigmoid(), each.prod(-1, keepdim=True), atol=1e-6)


def test_the_test_set_is_of_texts_whose_sensors_all_pass(data) -> None:
    texts = {row["text"]: row for row in rows(120, len("validation"))}
    found = [texts[text] for text in data.test.columns["text"]]
    assert all(all(row["measurements"]) for row in found)
    assert [not row["is_correct"] for row in found] == data.labels.tolist()
    assert np.all(data.test.columns["answer"] == 1)
    clean = {row["text"] for row in rows(200, len("train")) if row["is_clean"]}
    assert set(data.trusted.columns["text"]) == clean
    assert not set(data.untrusted.columns["text"]) & clean
    assert all(texts[text]["is_correct"] for text in data.normal.columns["text"])
    assert len(data.normal) == 41 and data.labels.sum() == 30  # 450 and 1000 in proportion, of 60


def test_tokens_after_the_last_sensor_do_not_matter_and_are_cut_off(data, folder) -> None:
    model, tokenizer = load_predictor(str(folder / "model"))
    opened = open_model(model, tokenizer=tokenizer)
    whole = opened.inputs(list(data.test.columns["text"]))
    assert all(row[-1] == OMIT for row in data.test.main) and all(row[-1] == 3 for row in whole.main)
    for cut, full in zip(opened.batches(data.test), opened.batches(whole)):
        assert torch.allclose(opened.logits(cut), opened.logits(full), atol=1e-5)


@pytest.mark.parametrize("detector", ["attribution-patching+mahalanobis", "resampling-profile+mahalanobis"])
def test_detectors_run_on_it(data, detector) -> None:
    result, _ = evaluate_seed(data, parse_detector(detector), 0, controls={})
    assert 0 <= result.auroc <= 1 and np.isfinite(result.scores).all()


def test_loading_again_and_the_command_line(data, folder) -> None:
    again = parse_spec("tasks", data.name)
    assert again == Diamonds(str(folder), str(folder / "model"))
    assert again.load(0).test.ids == data.test.ids != again.load(1).test.ids
    assert open_model(data.model).fingerprint() == data.card["fingerprint"]
    json.dumps(data.card)


def test_no_parameter_may_be_missing_or_different(tmp_path) -> None:
    checkpoint(tmp_path)
    tokenizer_in(tmp_path)
    good = load_file(tmp_path / "model.safetensors")

    def refused(change: dict[str, torch.Tensor | None]) -> str:
        new = {**good, **change}
        save_file({key: value for key, value in new.items() if value is not None}, tmp_path / "model.safetensors")
        with pytest.raises(TaskError) as caught:
            load_predictor(str(tmp_path))
        return str(caught.value)

    assert "lacks 1 of the parameters, the first is 'sensor_probes.1.bias'" in refused({"sensor_probes.1.bias": None})
    assert "has unknown 1 of the parameters" in refused({"sensor_probe.weight": torch.zeros(1)})
    assert "transformer.wte.weight of" in refused({"transformer.wte.weight": torch.zeros(WORDS, 31)})
    save_file({**good, "transformer.h.0.attn.causal_mask": torch.zeros(1)}, tmp_path / "model.safetensors")
    load_predictor(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(TaskError, match="pickled weights are never read"):
        load_predictor(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_sensors": None}, "has no n_sensors"),
        ({"sensor_loc_type": "locs_from_stories"}, "locs_from_stories"),
        ({"model_type": "something_mp"}, "'something' model"),
    ],
)
def test_other_configurations_are_refused(change, said, tmp_path) -> None:
    checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(TaskError, match=said):
        load_predictor(str(tmp_path))


def test_texts_need_as_many_sensor_tokens(folder, tmp_path, data) -> None:
    for split in ("train", "validation"):
        lines = [json.dumps(row | {"text": row["text"] + " omit"}) for row in rows(80, len(split))]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    with pytest.raises(TaskError, match="has 4 sensor tokens"):
        Diamonds(str(tmp_path), str(folder / "model")).load(0)
    opened = open_model(data.model)
    with pytest.raises(ModelError, match="sensor tokens in a text"):
        opened.logits(next(opened.batches(opened.inputs([{"input_ids": [3, 4]}]))))
    with pytest.raises(TaskError, match="no column 'is_clean'"):
        line = json.dumps({key: value for key, value in rows(1, 0)[0].items() if key != "is_clean"})
        (tmp_path / "train.jsonl").write_text(line)
        Diamonds(str(tmp_path), str(folder / "model")).load(0)
