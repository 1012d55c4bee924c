"""Controls see what they say they see, and nothing of the labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from causalmad.detector import Detector
from causalmad.evaluation import auroc, control_aurocs
from causalmad.evaluation.controls import raw_inputs
from causalmad.inputs import Inputs
from causalmad.references import Mahalanobis
from causalmad.signatures import Activations
from causalmad.tasks import TaskData
from tests.stub_task import Stub


def test_a_shift_of_the_input_shows_at_the_input() -> None:
    found = control_aurocs(Stub(shift=6.0).load(0))
    assert list(found) == [
        "output-confidence",
        "output-entropy",
        "input-mahalanobis",
        "input-knn",
        "activations+mahalanobis",
        "activations+mahalanobis[two_sided=true]",
        "input-skyline",
        "activation-skyline",
    ]
    assert found["input-mahalanobis"] == found["input-knn"] == 1.0


def test_without_a_shift_no_control_tells_anything() -> None:
    draws = [control_aurocs(Stub(shift=0.0).load(seed)) for seed in range(12)]
    for name in draws[0]:
        values = [found[name] for found in draws]
        # 30 + 30 inputs: an AUROC has a standard deviation of 0.075 when nothing is there to tell.
        assert abs(np.mean(values) - 0.5) < 4 * 0.075 / np.sqrt(12), name


def test_output_confidence_is_the_margin() -> None:
    data = Stub().load(3)
    logits = data.model(data.test.main).detach()
    top = logits.max(-1).values
    rest = torch.stack([torch.cat([row[:i], row[i + 1 :]]).logsumexp(0) for row, i in zip(logits, logits.argmax(-1))])
    assert control_aurocs(data)["output-confidence"] == auroc(data.labels, (rest - top).numpy())


@pytest.mark.parametrize("two_sided", [False, True])
def test_the_baseline_is_the_detector_of_that_name(two_sided: bool) -> None:
    data = Stub(shift=1.0).load(0)
    fitted = Detector(Activations(), Mahalanobis(two_sided=two_sided)).fit(data.model, data.trusted, seed=5)
    name = "activations+mahalanobis" + "[two_sided=true]" * two_sided
    assert control_aurocs(data, 5)[name] == pytest.approx(auroc(data.labels, fitted.score(data.test)))


def test_tokens_of_one_length_are_one_hot_by_place_and_unknown_ones_are_alike() -> None:
    trusted = Inputs.of({"input_ids": torch.tensor([[3, 5], [5, 3]])})
    test = Inputs.of({"input_ids": torch.tensor([[3, 3], [9, 8]])})
    rows, others = raw_inputs(trusted, test)
    assert rows.tolist() == [[1, 0, 0, 0, 1, 0], [0, 1, 0, 1, 0, 0]]  # words 3, 5, other; then the second place
    assert others.tolist() == [[1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 1]]


def test_ragged_tokens_are_counted() -> None:
    trusted = Inputs.of([{"input_ids": [3, 5, 5]}, {"input_ids": [5]}])
    test = Inputs.of([{"input_ids": [3, 9, 9, 5]}])
    rows, others = raw_inputs(trusted, test)
    assert rows.tolist() == [[1, 2, 0], [0, 1, 0]]
    assert others.tolist() == [[1, 1, 2]]


def test_length_is_a_control_where_it_varies(model_of) -> None:
    model: nn.Module = model_of("gpt2")
    draw = np.random.default_rng(0)

    def rows(lengths: list[int]) -> Inputs:
        return Inputs.of([{"input_ids": draw.integers(2, 50, size).tolist()} for size in lengths])

    labels = np.array([False, True] * 10)
    data = TaskData("lengths", 0, model, rows([4, 5] * 20), rows([4, 12] * 10), labels, rows([4, 5] * 5), None, {})
    found = control_aurocs(data)
    assert found["length"] == 1.0
    assert set(found) >= {"input-knn", "input-mahalanobis"}


def test_a_control_that_cannot_be_fitted_is_none(caplog: pytest.LogCaptureFixture) -> None:
    data = Stub().load(0)
    found = control_aurocs(replace(data, trusted=data.trusted[:2]))
    assert found["activations+mahalanobis"] is None
    assert found["output-confidence"] is not None
    assert "gave no score" in caplog.text
