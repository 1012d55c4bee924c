import json

import numpy as np
import pytest

from causalmad import Detector
from causalmad.errors import InputsError
from causalmad.inputs import Inputs
from causalmad.signatures import Activations
from causalmad.testing.toys import toy


@pytest.fixture(scope="module")
def detection():
    made = toy("mlp", trusted=60, fresh=30)
    named = Inputs.of(made.fresh, ids=[f"prompt {i}" for i in range(30)])
    return Detector(Activations()).fit(made.model, made.trusted).detect(named, alpha=0.2)


def test_ids_rows_and_numpy_numbers_find_an_input(detection):
    for key in (7, np.int64(7), "prompt 7"):
        assert detection.explain(key).id == "prompt 7"
    assert detection.explain(7).score == detection.scores[7]
    assert detection.explain(7).p_value == detection.p_values[7]
    assert len(detection) == 30


@pytest.mark.parametrize("key", [30, -1, "prompt 99", 1.5, None])
def test_an_unknown_id_is_named_with_the_nearest(detection, key):
    with pytest.raises(InputsError) as error:
        detection.explain(key)
    assert len(error.value.tries) == 3
    if key == "prompt 99":
        assert "'prompt 9'" in error.value.tries


def test_a_number_is_a_row_and_a_text_an_id_also_where_ids_are_numbers():
    made = toy("mlp", trusted=60, fresh=3)
    renamed = Inputs.of(made.fresh, ids=[1, 2, 3])  # as a file's id column counts
    found = Detector(Activations()).fit(made.model, made.trusted).detect(renamed, alpha=0.2)
    for row in (0, np.int64(1), 2):
        assert (found.explain(row).id, found.explain(row).score) == (str(row + 1), found.scores[row])
        assert found.explain(str(row + 1)).score == found.scores[row]
    with pytest.raises(InputsError) as error:
        found.explain(3)
    assert "'3'" in error.value.tries and "row number 0..2" in error.value.needed
    with pytest.raises(InputsError):
        found.explain("0")


def test_printing_shows_the_most_anomalous_first(detection):
    text = str(detection)
    lines = [line for line in text.splitlines() if "prompt" in line]
    worst = detection.ids[int(np.argmax(detection.scores))]
    assert len(lines) == 20 and worst in lines[0] and "10 more inputs" in text
    assert f"{int(detection.flags.sum())} of 30 inputs flagged at alpha = 0.2" in text
    assert sum("flag" in line for line in lines) == min(int(detection.flags.sum()), 20)
    assert detection.explain(worst).leading in lines[0]
    assert "\x1b" not in text


def test_rows_are_plain_data(detection):
    rows = json.loads(json.dumps(detection.rows()))
    assert [row["id"] for row in rows] == list(detection.ids)
    assert [row["flag"] for row in rows] == detection.flags.tolist()
    assert [row["score"] for row in rows] == detection.scores.tolist()
    for row in rows:
        assert sum(part["amount"] for part in row["contributions"]) == pytest.approx(row["score"])


def test_nothing_to_score_is_an_empty_detection():
    made = toy("mlp", trusted=40)
    empty = Detector(Activations()).fit(made.model, made.trusted).detect(made.fresh[:0], alpha=0.1)
    assert len(empty) == 0 and empty.flags.shape == (0,) and "0 of 0 inputs" in str(empty)
