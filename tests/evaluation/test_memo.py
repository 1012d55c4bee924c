"""A memo spares work and changes nothing."""

import time
from dataclasses import dataclass

import numpy as np
import pytest

from causalmad.evaluation.memo import Memo
from causalmad.evaluation.protocol import evaluate_seed
from causalmad.names import parse_detector
from causalmad.signatures import Activations
from tests.stub_task import Stub

DETECTORS = (
    "activations+mahalanobis",
    "activations+nearest-neighbours",
    "concat[signatures=activations;attribution-patching]+per-site[each=part]",
    "attribution-patching+mahalanobis",
)


@pytest.fixture(scope="module")
def data():
    return Stub().load(0)


def test_a_memo_changes_no_score(data):
    memo = Memo()
    for text in DETECTORS:
        alone, _ = evaluate_seed(data, parse_detector(text), 0, controls={})
        shared, _ = evaluate_seed(data, parse_detector(text), 0, controls={}, memo=memo)
        np.testing.assert_array_equal(alone.scores, shared.scores)
        np.testing.assert_array_equal(alone.normal_p_values, shared.normal_p_values)


@dataclass(frozen=True)
class Counted:
    """Activations that take their time."""

    seconds: float = 0.2

    def fit(self, model, trusted, seed=0):
        time.sleep(self.seconds)
        return Activations().fit(model, trusted, seed)

    def restore(self, model, state):
        return Activations().restore(model, state)


def test_what_was_spared_is_counted(data):
    from causalmad import Detector

    memo = Memo()
    first, _ = evaluate_seed(data, Detector(Counted()), 0, controls={}, memo=memo)
    assert memo.spared == 0
    second, _ = evaluate_seed(data, Detector(Counted()), 0, controls={}, memo=memo)
    assert memo.spared >= 0.2 and second.fit_seconds >= 0.2
    np.testing.assert_array_equal(first.scores, second.scores)


def test_other_options_seeds_and_inputs_are_other_entries(data):
    memo = Memo()
    one, _ = evaluate_seed(data, parse_detector("activations+mahalanobis"), 0, controls={}, memo=memo)
    other, _ = evaluate_seed(data, parse_detector("activations+mahalanobis"), 1, controls={}, memo=memo)
    alone, _ = evaluate_seed(data, parse_detector("activations+mahalanobis"), 1, controls={})
    np.testing.assert_array_equal(other.scores, alone.scores)
    assert not np.array_equal(one.scores, other.scores)


def test_a_failure_is_not_remembered():
    memo = Memo()
    with pytest.raises(ZeroDivisionError):
        memo.recall("key", lambda: 1 / 0)
    assert memo.recall("key", lambda: 2) == 2


def test_a_memo_is_of_one_model_and_names_columns_as_ever(data):
    from causalmad.errors import FitError

    memo = Memo()
    detector = parse_detector(DETECTORS[2])
    _, alone = evaluate_seed(data, detector, 0, controls={})
    _, shared = evaluate_seed(data, detector, 0, controls={}, memo=memo)
    assert shared.signature.columns == alone.signature.columns
    with pytest.raises(FitError, match="another model"):
        evaluate_seed(Stub().load(1), detector, 0, controls={}, memo=memo)
