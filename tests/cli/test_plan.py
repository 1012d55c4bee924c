"""--dry-run: what is counted, what is said, and that nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import causalmad as cm
from causalmad.cli.plan import Passes, Sample, _line, counted
from tests.cli.conftest import words

DETECTOR = "attribution-patching[units=blocks]+mahalanobis"


def test_passes_are_counted_and_nothing_stays() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with counted(model) as found:
        model(torch.zeros(5, 2)).sum().backward()
        with torch.no_grad():
            model(torch.zeros(2, 2))
    assert found == Passes(7, 5)
    assert not model._forward_hooks and not model._forward_pre_hooks
    model(torch.zeros(1, 2))
    assert found == Passes(7, 5)


def test_signatures_cost_what_they_say() -> None:
    from tests.stub_task import Stub

    data = Stub().load(0)
    opened = cm.open_model(data.model)
    fitted = cm.signatures.Activations().fit(opened, data.trusted[:8])
    with counted(opened.module) as found:
        fitted(data.test[:8])
    assert found == Passes(8, 0)


def test_a_fit_is_extrapolated_along_a_line() -> None:
    samples = [Sample(size, 1.0 + size, Passes(size, 2 * size), 0.0, Passes(), 1) for size in (8, 16)]
    assert _line(samples, lambda sample: sample.ready_seconds, 100) == pytest.approx(101)
    assert _line(samples, lambda sample: sample.ready.backward, 100) == pytest.approx(200)
    assert _line(samples[:1], lambda sample: sample.ready.forward, 80) == 80
    falling = [Sample(8, 5.0, Passes(), 0.0, Passes(), 1), Sample(16, 4.0, Passes(), 0.0, Passes(), 1)]
    assert _line(falling, lambda sample: sample.ready_seconds, 100) == 4.0


def test_of_a_fit(run, stub, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("fit", "--task", "stub", "--detector", DETECTOR, "--dry-run")
    assert done.exit_code == 0, done.stderr
    for said in ("Nothing is written", "140 for what is normal, 100 for p-values", "forward", "backward", "alpha"):
        assert said in done.stdout
    assert not list(tmp_path.iterdir())
    data = json.loads(run("fit", "--task", "stub", "--detector", DETECTOR, "--dry-run", "--json", "-").stdout)
    assert (data["inputs"]["fit"], data["inputs"]["calibration"]) == (140, 100)
    assert data["smallest_alpha"] == pytest.approx(1 / 101) and data["smallest_alpha_is_exact"]
    run("fit", "--task", "stub", "--detector", DETECTOR, "--out", "det")
    fitted = cm.FittedDetector.load("det", cm.open_model(stub_model()))
    assert data["columns"] == len(fitted.trusted.columns)
    assert data["smallest_alpha"] == fitted.calibrator.smallest


def stub_model() -> nn.Module:
    from tests.stub_task import Stub

    return Stub().load(0).model


@pytest.mark.parametrize("name", [DETECTOR, "resampling-profile[units=blocks]+mahalanobis", "input-only+mahalanobis"])
def test_a_fit_takes_the_passes_that_were_said(name: str) -> None:
    from causalmad.cli.plan import plan_fit
    from causalmad.names import parse_detector
    from tests.stub_task import Stub

    data, spec = Stub().load(0), parse_detector(name)
    opened = cm.open_model(data.model)
    said = plan_fit(spec, opened, data.trusted, None, 0, lambda what, done, total: None).data["passes"]["all"]
    with counted(opened.module) as found:
        spec.fit(opened, data.trusted, seed=0)
    assert said == {"forward": found.forward, "backward": found.backward}


def test_of_a_fit_whose_calibrator_asks_for_more(run, stub) -> None:
    done = run("fit", "--task", "stub", "--detector", "activations+mahalanobis+mondrian[by=length]", "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert "at best 0.01 or more" in done.stdout


def test_of_a_detection(run, gpt2: Path, texts: Path, tmp_path: Path, monkeypatch) -> None:
    det = tmp_path / "det"
    done = run("fit", "--model", gpt2, "--trusted", texts, "--detector", "activations", "--out", det, "--json", "-")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["calibration"] == 30
    base = ("detect", det, "-", "--model", gpt2, "--dry-run")
    rows = "\n".join(json.dumps({"text": text}) for text in words(10, 3))
    done = run(*base, "--alpha", 0.001, stdin=rows)
    assert done.exit_code == 0, done.stderr
    assert "as many as come" in done.stdout and "0.001 is out of reach" in done.stdout
    file = tmp_path / "rows.jsonl"
    file.write_text(rows)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    data = json.loads(run("detect", det, file, "--model", gpt2, "--dry-run", "--json", "-").stdout)
    assert data["inputs"] == 10 and data["passes"]["each"] == {"forward": 1.0, "backward": 0.0}
    assert data["alpha_in_reach"] and data["smallest_alpha"] == pytest.approx(1 / 31)
    assert sorted(tmp_path.iterdir()) == before
