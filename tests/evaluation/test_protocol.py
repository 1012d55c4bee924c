"""The protocol on a stub task: the JSON, the error rates, what happens when an alpha is out of reach."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from causalmad.calibration.interval import beta_binomial_interval
from causalmad.detector import Detector
from causalmad.errors import SpecError
from causalmad.evaluation import Evaluation, auroc, evaluate, evaluate_seed, interval95
from causalmad.evaluation.results import SeedResult
from causalmad.signatures import Activations
from causalmad.tasks import TaskData
from tests.stub_task import Stub


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate(Stub(), "activations+mahalanobis", seeds=3)


def test_json_has_the_agreed_form(evaluation: Evaluation) -> None:
    data = json.loads(json.dumps(evaluation.to_data(), allow_nan=False))
    assert (data["task"], data["detector"]) == ("stub[shift=4]", "activations+mahalanobis")
    assert [row["seed"] for row in data["seeds"]] == [0, 1, 2]
    for row in data["seeds"]:
        assert {"auroc", "average_precision", "fit_seconds", "score_seconds"} <= set(row)
        assert set(row["tpr_at_fpr"]) == set(row["fpr_at_alpha"]) == {"0.01", "0.05"}
        assert row["sizes"] == {"trusted": 240, "calibration": 100, "test": 60, "normal": 100}
    values = [row["auroc"] for row in data["seeds"]]
    assert data["auroc"]["mean"] == pytest.approx(np.mean(values))
    assert data["auroc"]["ci95"] == pytest.approx(np.clip(interval95(values), 0, 1))
    assert data["auroc"]["worst"] == min(values)
    for control in data["controls"].values():
        assert set(control) == {"mean", "ci95", "seeds"} and len(control["seeds"]) == 3
    assert data["versions"]["causalmad"]


def test_numbers_are_those_of_the_detector(evaluation: Evaluation) -> None:
    data = Stub().load(1)
    fitted = Detector(Activations()).fit(data.model, data.trusted, seed=1)
    result = evaluation.seeds[1]
    assert result.auroc == auroc(data.labels, fitted.score(data.test))
    for alpha in ("0.01", "0.05"):
        assert result.fpr_at_alpha[alpha] == fitted.detect(data.normal, alpha=float(alpha)).flags.mean()
        assert result.fpr_interval99[alpha] == beta_binomial_interval(100, 100, float(alpha), 0.99)
    assert result.accuracy == {"normal": 1.0}


def test_text_shows_the_controls_beside_ours_with_their_options(evaluation: Evaluation) -> None:
    text = str(evaluation)
    assert "activations+mahalanobis (this detector)" in text
    assert "activations+mahalanobis[two_sided=true]" in text
    assert "95 % interval" in text


def test_text_shows_in_which_interval_the_share_of_false_flags_should_lie(evaluation: Evaluation) -> None:
    lines = str(evaluation).splitlines()
    for result in evaluation.seeds:
        row = next(number for number, line in enumerate(lines) if line.startswith(f"│    {result.seed} │"))
        for alpha, share in result.fpr_at_alpha.items():
            low, high = result.fpr_interval99[alpha]
            assert f"{share:.3f} │" in lines[row] and f"{low:.3f} to {high:.3f} │" in lines[row + 1]
    assert "99 %" in str(evaluation)


def test_what_is_given_the_labels_is_marked(evaluation: Evaluation) -> None:
    lines = [line for line in str(evaluation).splitlines() if "uses labels" in line]
    assert ["input-skyline" in lines[0], "activation-skyline" in lines[1]] == [True, True] and len(lines) == 2
    assert {"input-skyline", "activation-skyline"} <= set(evaluation.controls)


def test_an_alpha_out_of_reach_is_null_and_said() -> None:
    result = evaluate(Stub(trusted=60), "activations+mahalanobis", seeds=1).to_data()
    (row,) = result["seeds"]
    assert row["fpr_at_alpha"]["0.01"] is None and row["fpr_interval99"]["0.01"] is None
    assert row["fpr_at_alpha"]["0.05"] is not None
    assert any("alpha=0.01" in note for note in row["notes"])
    assert result["auroc"]["ci95"] == [None, None]


def test_labels_reach_the_metrics_only() -> None:
    data = Stub().load(0)
    first, _ = evaluate_seed(data, Detector(Activations()))
    other, _ = evaluate_seed(replace(data, labels=~data.labels), Detector(Activations()))
    assert other.auroc == pytest.approx(1 - first.auroc)
    assert other.fpr_at_alpha == first.fpr_at_alpha


def test_seeds_can_be_named_and_must_be_some() -> None:
    assert [result.seed for result in evaluate(Stub(), "activations+mahalanobis", seeds=[4]).seeds] == [4]
    for seeds in (0, [], [1, 1]):
        with pytest.raises(SpecError):
            evaluate(Stub(), "activations+mahalanobis", seeds=seeds)


def test_progress_says_what_is_done() -> None:
    said: list[tuple[str, int, int]] = []
    evaluate(Stub(), "activations+mahalanobis", seeds=1, progress=lambda *step: said.append(step))
    assert said[0] == ("seed 0: training", 1, 1)
    assert said[-1] == ("seed 0: fitting and scoring", 1, 1)


def test_threads_and_random_state_are_as_before() -> None:
    before, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        evaluate(Stub(), "activations+mahalanobis", seeds=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert torch.equal(state, torch.get_rng_state())


def test_specs_are_named_as_on_the_command_line() -> None:
    found = evaluate(Stub(shift=2.0), Detector(Activations(positions="all")), seeds=1)
    assert (found.task, found.detector) == ("stub[shift=2]", "activations[positions=all]+mahalanobis")


@dataclass(frozen=True)
class OneModel(Stub):
    """The same model and test inputs for all seeds, as files of one's own have them."""

    outside: ClassVar[bool] = True

    def load(self, seed: int = 0, *, progress: object = None) -> TaskData:
        data = super().load(0)
        return replace(data, trusted=data.trusted[np.random.default_rng(seed).permutation(240)[:180]])


def test_on_the_same_test_inputs_the_interval_is_over_these() -> None:
    """Seeds hardly differ where only the fit does: Student's interval over them says nothing of other inputs."""
    found = evaluate(OneModel(shift=0.7), "activations+mahalanobis", seeds=4)
    data, values = found.to_data(), [result.auroc for result in found.seeds]
    low, high = data["auroc"]["ci95"]
    assert found.shared and high - low > 1.5 * np.subtract(*interval95(values)[::-1])
    assert all(control["ci95"] == [None, None] for control in data["controls"].values())
    # The slow twin: fits and inputs drawn with replacement, the inputs once for all fits.
    draw, means = np.random.default_rng(5), []
    labels = found.seeds[0].labels
    for _ in range(400):
        rows = np.concatenate([draw.choice(np.flatnonzero(labels == kind), 30) for kind in (False, True)])
        fits = draw.integers(0, 4, 4)
        means.append(np.mean([auroc(labels[rows], found.seeds[fit].scores[rows]) for fit in fits]))
    assert (low, high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.02)
    (alone,) = evaluate(OneModel(shift=0.7), "activations+mahalanobis", seeds=1).to_data()["seeds"]
    assert alone["auroc"] == values[0]
    assert not evaluate(Stub(), "activations+mahalanobis", seeds=1).shared


def test_an_interval_of_auroc_stays_within_its_bounds() -> None:
    seeds = [SeedResult(seed, value, 0.5, {}, {}, {}, 1, 1, {}, {}, {}) for seed, value in enumerate((1.0, 1.0, 0.9))]
    found = Evaluation("t", "d", tuple(seeds), {})
    assert interval95([1.0, 1.0, 0.9])[1] > 1
    assert found.interval[1] == 1.0 and found.to_data()["auroc"]["ci95"][1] == 1.0
