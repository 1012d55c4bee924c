"""Logs are written whole, found again, and refused when they are not what was written."""

import json

import pytest

from causalmad.detector import Detector
from causalmad.errors import StoreError
from causalmad.evaluation import evaluate_seed
from causalmad.evaluation.logs import Log, place, read_logs
from causalmad.signatures import Activations
from tests.evaluation.logged import made_up
from tests.stub_task import Stub


def test_what_is_written_is_read(tmp_path):
    log = made_up("t[a=1;b=2]", "d[x=1]+m", 3, 1.0)
    path = log.write(tmp_path)
    assert path == place(tmp_path, log.task, log.detector, 3)
    assert Log.read(path) == log
    assert read_logs([tmp_path]) == (log,)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_names_that_look_alike_have_places_of_their_own(tmp_path):
    names = ["a[x=1]", "a[x/1]", "a[x 1]", "A[x=1]"]
    assert len({place(tmp_path, "t", name, 0) for name in names}) == len(names)


@pytest.mark.parametrize("damage", ["cut", "changed", "schema", "list"])
def test_damaged_logs_are_refused(tmp_path, damage):
    path = made_up("t", "d", 0, 1.0).write(tmp_path)
    text = path.read_text()
    content = json.loads(text)
    if damage == "cut":
        path.write_text(text[: len(text) // 2])
    elif damage == "changed":
        path.write_text(json.dumps({**content, "scores": content["scores"][::-1]}))
    elif damage == "schema":
        path.write_text(json.dumps({**content, "schema": 99}))
    else:
        path.write_text("[1, 2]")
    with pytest.raises(StoreError):
        Log.read(path)


def test_a_folder_without_logs_is_named(tmp_path):
    with pytest.raises(StoreError, match="no logs"):
        read_logs([tmp_path])


def test_a_log_explains_itself(tmp_path):
    task, parts = Stub(), Detector(Activations())
    data = task.load(0)
    found, fitted = evaluate_seed(data, parts, 0, controls={})
    log = Log.of("stub", task, "activations", parts, data, found, fitted.model.fingerprint())
    content = Log.read(log.write(tmp_path)).content
    assert content["arguments"]["task"] == {"shift": 4.0, "trusted": 240}
    assert content["arguments"]["detector"]["signature"]["options"] == {"sites": "auto", "positions": -1}
    assert content["arguments"]["detector"]["reference"]["options"]["two_sided"] is False
    assert content["ids"] == list(data.test.ids)
    assert len(content["scores"]) == len(content["p_values"]) == len(data.test)
    assert len(content["normal_p_values"]) == len(data.normal)
    assert log.auroc == found.auroc
    assert {"versions", "revision", "fingerprints"} <= set(content)
