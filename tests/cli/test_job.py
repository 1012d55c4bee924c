"""fit, detect and explain: from a folder with a model and files with texts to a reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import causalmad as cm
from tests.cli.conftest import words


@pytest.fixture(scope="module")
def detector(tmp_path_factory, gpt2: Path, texts: Path) -> Path:
    from typer.testing import CliRunner

    from causalmad.cli.app import app

    out = tmp_path_factory.mktemp("detectors") / "det"
    names = ["--signature", "activations", "--reference", "mahalanobis"]
    done = CliRunner().invoke(app, ["fit", "--model", str(gpt2), "--trusted", str(texts), *names, "--out", str(out)])
    assert done.exit_code == 0, done.stderr
    assert "60 trusted inputs: 30 for what is normal, 30 for p-values" in done.stdout
    return out


@pytest.fixture(scope="module")
def incoming(tmp_path_factory) -> Path:
    """Four texts of trusted kind and one that ends in another word."""
    path = tmp_path_factory.mktemp("data") / "incoming.jsonl"
    rows = [{"id": str(i), "text": text} for i, text in enumerate(words(4, 1))]
    rows.append({"id": "odd", "text": "w7 w9 w40"})
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_file_says_what_the_library_says(run, detector, gpt2, incoming, tokenizer, tmp_path) -> None:
    from transformers import GPT2LMHeadModel

    out = tmp_path / "new" / "flags.jsonl"
    done = run("detect", detector, incoming, "--model", gpt2, "--alpha", 0.1, "--out", out)
    assert done.exit_code == 0, done.stderr
    rows = read(out)
    model = cm.open_model(GPT2LMHeadModel.from_pretrained(gpt2), tokenizer=tokenizer)
    texts = [json.loads(line) for line in incoming.read_text().splitlines()]
    detection = cm.FittedDetector.load(detector, model).detect(texts, alpha=0.1)
    assert [row["id"] for row in rows] == list(detection.ids)
    assert [row["score"] for row in rows] == detection.scores.tolist()
    assert [row["p"] for row in rows] == detection.p_values.tolist()
    assert [row["flag"] for row in rows] == detection.flags.tolist()
    assert rows[4]["flag"]
    for row in rows:
        assert sum(part["amount"] for part in row["contributions"]) == pytest.approx(row["score"], rel=1e-5)
    assert "inputs flagged at alpha = 0.1" in done.stdout
    assert [path.name for path in out.parent.iterdir()] == ["flags.jsonl"]  # no temporary file stays


def test_standard_input_and_output(run, detector, gpt2, incoming, tmp_path) -> None:
    out = tmp_path / "flags.jsonl"
    run("detect", detector, incoming, "--model", gpt2, "--out", out)
    done = run("detect", detector, "-", "--model", gpt2, stdin=incoming.read_text())
    assert done.exit_code == 0
    assert [json.loads(line) for line in done.stdout.splitlines()] == read(out)
    assert "inputs flagged" in done.stderr
    assert run("detect", detector, "-", "--model", gpt2, "-q", stdin=incoming.read_text()).stderr == ""


def test_fail_on_flag(run, detector, gpt2, incoming) -> None:
    base = ("detect", detector, "-", "--model", gpt2, "--alpha", 0.1, "--fail-on-flag")
    assert run(*base, stdin=incoming.read_text()).exit_code == 1
    usual = [line for line, row in zip(incoming.read_text().splitlines(), range(4))]
    flagged = run(*base[:-1], stdin="\n".join(usual)).stdout
    calm = [line for line, row in zip(usual, flagged.splitlines()) if not json.loads(row)["flag"]]
    assert calm
    assert run(*base, stdin="\n".join(calm)).exit_code == 0


def test_false_discovery_rate_is_benjamini_and_hochbergs(run, detector, gpt2, incoming) -> None:
    rows = [
        json.loads(line)
        for line in run(
            "detect", detector, incoming, "--model", gpt2, "--alpha", 0.2, "--fdr", "bh"
        ).stdout.splitlines()
    ]
    p = np.array([row["p"] for row in rows])
    # Step up: everything up to the largest k with the k-th p-value at most alpha k / m.
    order = np.argsort(p, kind="stable")
    passing = [k for k in range(len(p)) if p[order[k]] <= 0.2 * (k + 1) / len(p)]
    wanted = p <= p[order[passing[-1]]] if passing else np.zeros(len(p), bool)
    assert [row["flag"] for row in rows] == wanted.tolist()
    assert all(row["p_adjusted"] >= row["p"] for row in rows)


@pytest.mark.parametrize("method", ["by", "storey", "e-bh"])
def test_other_ways_to_bound_it(method, run, detector, gpt2, incoming) -> None:
    done = run("detect", detector, incoming, "--model", gpt2, "--alpha", 0.3, "--fdr", method)
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    p = np.array([row["p"] for row in rows])
    assert [row["flag"] for row in rows] == cm.calibration.reject(p, 0.3, method).tolist()
    assert {row["fdr"] for row in rows} == {method} and f"({method})" in done.stderr


def test_a_calibrator_that_weighs_by_untrusted_inputs(run, gpt2, texts, incoming, tmp_path) -> None:
    base = ("fit", "--model", gpt2, "--trusted", texts, "--signature", "activations", "--out", tmp_path / "det")
    done = run(*base, "--calibrator", "weighted[by=length;]")
    assert done.exit_code == 2 and "there are none" in done.stderr
    done = run(*base, "--calibrator", "weighted[by=length;]", "--untrusted", incoming)
    assert done.exit_code == 0, done.stderr
    done = run("detect", tmp_path / "det", incoming, "--model", gpt2, "--alpha", 0.3)
    assert done.exit_code == 0 and len(done.stdout.splitlines()) == 5
    done = run(*base[:-4], "--detector", "activations+mahalanobis", "--calibrator", "mondrian", "--out", tmp_path / "x")
    assert done.exit_code == 2 and "one or the other" in done.stderr


def test_untrusted_inputs_that_play_no_part_are_said(run, gpt2, texts, incoming, tmp_path) -> None:
    base = ("fit", "--model", gpt2, "--trusted", texts, "--out", tmp_path / "det", "--untrusted", incoming)
    done = run(*base, "--detector", "activations+mahalanobis")
    assert done.exit_code == 0, done.stderr
    assert f"those of {incoming} play no part" in " ".join(done.stderr.split())
    assert "play no part" not in run(*base, "--detector", "activations+quantum-entropy").stderr


def test_too_many_inputs_for_a_false_discovery_rate_is_said(run, detector, gpt2, incoming) -> None:
    done = run("detect", detector, incoming, "--model", gpt2, "--alpha", 0.04, "--fdr", "bh")
    assert done.exit_code == 0
    assert "at least 5 of them" in done.stderr  # 1/31 * 5 / 0.04 = 4.03


def test_alpha_out_of_reach_is_refused_and_writes_nothing(run, detector, gpt2, incoming, tmp_path) -> None:
    out = tmp_path / "flags.jsonl"
    done = run("detect", detector, incoming, "--model", gpt2, "--alpha", 0.001, "--out", out)
    assert done.exit_code == 2
    assert "CalibrationError: alpha=0.001 can never flag anything" in done.stderr and "999" in done.stderr
    assert not out.exists()


def test_a_bad_line_is_named_and_writes_nothing(run, detector, gpt2, tmp_path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "w1 w2"}\n{"text": }\n')
    done = run("detect", detector, bad, "--model", gpt2, "--out", tmp_path / "flags.jsonl")
    assert done.exit_code == 2
    assert "bad.jsonl, line 2 is no JSON: Expecting value, column 10\n" in done.stderr
    assert not (tmp_path / "flags.jsonl").exists()


def test_trusted_inputs_among_the_new_ones_are_said(run, detector, gpt2, texts) -> None:
    assert "60 of 60 inputs are among the trusted ones" in run("detect", detector, texts, "--model", gpt2).stderr


def test_another_model_is_refused(run, detector, incoming, tmp_path) -> None:
    import torch
    from transformers import GPT2LMHeadModel

    from tests.conftest import build

    model = build("gpt2")
    assert isinstance(model, GPT2LMHeadModel)
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(2)
    model.save_pretrained(tmp_path / "other")
    done = run("detect", detector, incoming, "--model", tmp_path / "other")
    assert done.exit_code == 2
    assert "fitted on another model" in done.stderr and "ln_f.weight" in done.stderr


def test_explain_needs_the_file_alone(run, detector, gpt2, incoming, tmp_path) -> None:
    out = tmp_path / "flags.jsonl"
    run("detect", detector, incoming, "--model", gpt2, "--alpha", 0.1, "--out", out)
    (row,) = [row for row in read(out) if row["id"] == "odd"]
    done = run("explain", out, "--id", "odd", "--top", 3)
    assert done.exit_code == 0
    assert f"score {row['score']:.4g}" in done.stdout and done.stdout.rstrip().endswith("flagged")
    assert row["contributions"][0]["column"] in done.stdout and "more columns" in done.stdout
    assert json.loads(run("explain", out, "--id", "odd", "--json").stdout) == row
    assert run("explain", "-", "--id", "odd", stdin=out.read_text()).exit_code == 0


def test_explain_names_what_is_wrong(run, tmp_path) -> None:
    path = tmp_path / "flags.jsonl"
    path.write_text('{"id": "a17", "text": "no flags"}\n')
    done = run("explain", path, "--id", "a71")
    assert done.exit_code == 2 and "--id a17" in done.stderr
    done = run("explain", path, "--id", "a17")
    assert done.exit_code == 2 and "line 1 has no 'flag'" in done.stderr
    row = {"id": 1, "flag": True, "score": 1, "p": 1, "contributions": [{"column": "a"}], "nearest": []}
    path.write_text(json.dumps(row))
    done = run("explain", path, "--id", 1)
    assert done.exit_code == 2 and "damaged" in done.stderr


def test_fit_does_not_touch_a_folder_of_something_else(run, gpt2, texts) -> None:
    before = sorted(path.name for path in gpt2.iterdir())
    done = run("fit", "--model", gpt2, "--trusted", texts, "--signature", "activations", "--out", gpt2)
    assert done.exit_code == 2 and "holds no detector" in done.stderr
    assert sorted(path.name for path in gpt2.iterdir()) == before


def test_a_place_that_cannot_be_written_is_found_out_first(run, gpt2, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    for out in ("file", "file/det", "file/further/det"):
        done = run(
            "fit", "--model", gpt2, "--trusted", "no-file", "--signature", "activations", "--out", tmp_path / out
        )
        assert done.exit_code == 2 and done.stderr.startswith("StoreError: ") and str(tmp_path / "file") in done.stderr


def test_scikit_learn_references_by_name(run, gpt2, texts, incoming, tmp_path) -> None:
    det, name = tmp_path / "det", "activations+isolation-forest[n_estimators=10]"
    done = run("fit", "--model", gpt2, "--trusted", texts, "--detector", name, "--out", det)
    assert done.exit_code == 0, done.stderr
    assert run("detect", det, incoming, "--model", gpt2).exit_code == 0


def test_models_that_cannot_be_opened_are_explained(run, gpt2, texts, tmp_path) -> None:
    def fit(folder: Path) -> str:
        names = ("--signature", "activations", "--out", tmp_path / "det")
        done = run("fit", "--model", folder, "--trusted", texts, *names)
        assert done.exit_code == 2 and not (tmp_path / "det").exists()
        return str(done.stderr)

    assert "is no folder" in fit(tmp_path / "nothing")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "ModelError: no model can be opened" in fit(empty)
    config = json.loads((gpt2 / "config.json").read_text())
    (empty / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2Model"]}))
    assert "is a model for GPT2Model" in fit(empty)
    (empty / "config.json").write_text(json.dumps(config))
    (empty / "model.safetensors").write_bytes((gpt2 / "model.safetensors").read_bytes()[:1000])
    assert "no model can be opened" in fit(empty)


def test_weights_that_are_missing_are_no_random_ones(run, texts, tmp_path) -> None:
    from tests.conftest import build

    build("bert").bert.save_pretrained(tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config))
    names = ("--signature", "activations", "--out", tmp_path / "det")
    done = run("fit", "--model", tmp_path / "bert", "--trusted", texts, *names)
    assert done.exit_code == 2
    assert "lacks" in done.stderr and "classifier" in done.stderr


def test_a_tasks_model_and_inputs(run, stub, tmp_path) -> None:
    det = tmp_path / "det"
    blocks = "attribution-patching[units=blocks]+mahalanobis"
    done = run("fit", "--task", "stub", "--detector", blocks, "--out", det, "--seed", 2)
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in run("detect", det, "--task", "stub", "--seed", 2).stdout.splitlines()]
    assert len(rows) == 60
    own = tmp_path / "own.jsonl"
    own.write_text('{"id": "far", "x": [9, 9, 9, 9]}\n{"id": "near", "x": [0, 0, 0, 0]}')
    done = run("detect", det, own, "--task", "stub", "--seed", 2)
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["far", "near"]
    assert run("detect", det, own, "--task", "stub", "--seed", 1).exit_code == 2


def test_blocks_can_be_declared(run, stub, tmp_path) -> None:
    draw = np.random.default_rng(0)
    own = tmp_path / "own.jsonl"
    own.write_text("\n".join(json.dumps({"x": draw.normal(size=4).tolist()}) for _ in range(50)))
    names = ("--signature", "attribution-patching[units=blocks]", "--out", tmp_path / "det")
    done = run("fit", "--task", "stub", "--trusted", own, *names, "--block", "first=0:1", "--block", "rest=1:4")
    assert done.exit_code == 0, done.stderr
    text = (tmp_path / "det" / "detector.json").read_text()
    assert "first" in text and "rest" in text
    done = run("fit", "--task", "stub", "--trusted", own, *names, "--block", "first=0:9")
    assert done.exit_code == 2 and "outside" in done.stderr
