"""Detectors by name, and the one that is recommended."""

import json
from pathlib import Path

import numpy as np
import pytest

import causalmad as cm
from causalmad.detectors import CANDIDATES, DETECTORS, RECOMMENDED, detector, recommended
from causalmad.errors import ModelError, SpecError
from causalmad.names import detector_text, parse_detector
from causalmad.testing import toy

LEADERBOARD = Path(__file__).parents[1] / "benchmarks" / "leaderboard.json"


@pytest.mark.parametrize("name", DETECTORS)
def test_every_name_stands_for_a_detector_whose_text_can_be_read_back(name):
    text = detector_text(detector(name))
    assert detector_text(parse_detector(text)) == text
    assert text.partition("[")[0].partition("+")[0] == DETECTORS[name].partition("[")[0].partition("+")[0]


def test_an_unknown_name_shows_the_nearest():
    with pytest.raises(SpecError, match="activations-lof"):
        detector("activation-lof")


@pytest.mark.parametrize("name", ["mlp", "linear", "conv", "gpt2", "llama", "neox", "bert"])
def test_the_recommended_detector_runs_on_every_kind_of_model(name):
    made = toy(name)
    fitted = recommended(made.model).fit(made.model, made.trusted, seed=0)
    found = fitted.detect(made.fresh, alpha=0.05)
    assert np.isfinite(found.scores).all() and ((0 < found.p_values) & (found.p_values <= 1)).all()
    parts = {column.block.partition(": ")[0] for column in fitted.signature.columns}
    assert parts == {"activations", "relevance-patching", "resampling-profile", "gram-deviation"}
    assert sum(part.amount for part in found.explain(0).contributions) == pytest.approx(found.scores[0], abs=1e-4)


def test_a_model_that_cannot_be_opened_is_said_at_once():
    with pytest.raises(ModelError):
        cm.detectors.recommended("no model")


def test_the_recommended_one_is_what_the_committed_leaderboard_chooses():
    choice = json.loads(LEADERBOARD.read_text(encoding="utf-8"))["choice"]
    assert choice["best"] == RECOMMENDED
    assert set(choice["chosen"].values()) <= set(CANDIDATES)
