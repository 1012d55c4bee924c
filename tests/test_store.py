import errno
import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.svm import OneClassSVM
from torch import nn

from causalmad import Detector, FittedDetector, Monitor, extract
from causalmad.cli.files import require_folder
from causalmad.errors import ModelError, SpecError, StoreError
from causalmad.references import Mahalanobis
from causalmad.signatures import Activations, AttributionPatching, ResamplingProfile
from causalmad.targets import ClassLogit
from causalmad.testing.toys import toy
from causalmad.testing.traces import untouched
from causalmad.whole import write_whole

MADE = toy("mlp", trusted=40, fresh=9)
FILES = ("detector.json", "state.safetensors")


def fit(*parts, seed=0, **options):
    return Detector(*(parts or (Activations(),)), **options).fit(MADE.model, MADE.trusted, seed=seed)


@pytest.fixture
def saved(tmp_path):
    fit().save(tmp_path / "detector")
    return tmp_path / "detector"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def scores_of(folder):
    return FittedDetector.load(folder, MADE.model).score(MADE.fresh)


@pytest.mark.parametrize(
    "parts",
    [
        (ResamplingProfile(target=ClassLogit(1), donors=2), Mahalanobis(two_sided=True)),
        (AttributionPatching(baseline="donors", normalise=True), OneClassSVM(gamma=0.1)),
    ],
)
def test_what_is_loaded_is_what_was_saved(tmp_path, parts):
    fitted = fit(*parts, seed=3)
    fitted.save(tmp_path / "a" / "b")
    again = FittedDetector.load(tmp_path / "a" / "b", MADE.model)
    np.testing.assert_array_equal(again.score(MADE.fresh), fitted.score(MADE.fresh))
    np.testing.assert_array_equal(again.trusted.values, fitted.trusted.values)
    assert again.provenance == fitted.provenance and again.seen == fitted.seen
    assert again.signature.columns == fitted.signature.columns and again.trusted.ids == fitted.trusted.ids
    assert str(again.detect(MADE.fresh, alpha=0.2)) == str(fitted.detect(MADE.fresh, alpha=0.2))
    again.save(tmp_path / "c")
    assert contents(tmp_path / "c") == contents(tmp_path / "a" / "b")


def test_what_is_no_model_is_no_error_of_the_files(saved):
    with pytest.raises(ModelError, match="a str is no model"):
        FittedDetector.load(saved, "gpt2")


def test_the_files_are_plain_data(saved):
    assert sorted(path.name for path in saved.iterdir()) == sorted(FILES)
    content = json.loads((saved / "detector.json").read_text())
    assert content["signature"]["name"] == "activations" and content["reference"]["name"] == "mahalanobis"
    assert (saved / "state.safetensors").read_bytes()[8:9] == b"{"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped", "appended", "removed"])
def test_damaged_files_are_refused(saved, name, damage):
    path = saved / name
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 4
    changed = {"truncated": data[:-20], "emptied": b"", "flipped": data, "appended": data + b"x", "removed": None}[
        damage
    ]
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(bytes(changed))
    with untouched(MADE.model, damage), pytest.raises(StoreError, match=name):
        scores_of(saved)


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content["provenance"].update(seed=1),
        lambda content: content["signature"].update(name="resampling-profile"),
        lambda content: content["parameters"].popitem(),
        lambda content: content.update(schema=99),
        lambda content: content.update(files={}),
        lambda content: content.update(files={"../elsewhere": "0"}),
        lambda content: content.pop("checksum"),
        lambda content: content.clear(),
    ],
)
def test_edited_descriptions_are_refused(saved, edit):
    path = saved / "detector.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError):
        scores_of(saved)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"text"', "{", "\ud800", "[" * 100_000])
def test_other_json_is_refused(saved, text):
    (saved / "detector.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(StoreError):
        scores_of(saved)


def test_another_model_is_refused_with_the_first_parameter_that_differs(saved):
    other = toy("mlp").model
    with torch.no_grad():
        other[3].weight[0, 0] += 1
        other[5].weight[0, 0] += 1
    with pytest.raises(StoreError, match=r"parameter '3\.weight' differs"):
        FittedDetector.load(saved, other)
    with pytest.raises(StoreError, match=r"is missing|differs"):
        FittedDetector.load(saved, toy("linear").model)


class Turned(nn.Module):
    """Its weights do not tell what it does: a buffer that no checkpoint holds does, too."""

    def __init__(self, base):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.last = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)
        self.register_buffer("turns", base ** -torch.linspace(0, 1, 8), persistent=False)

    def forward(self, x):
        return self.last(self.act(self.first(x) * self.turns))


def test_a_model_that_computes_other_buffers_is_another_model(tmp_path):
    data = torch.randn(60, 6)
    Detector(Activations("act")).fit(Turned(10.0), data[:50]).save(tmp_path / "det")
    found = FittedDetector.load(tmp_path / "det", Turned(10.0)).score(data[50:])
    with pytest.raises(StoreError, match=r"buffer 'turns', which no checkpoint holds, differs(.|\n)*base of rotary"):
        FittedDetector.load(tmp_path / "det", Turned(20.0))
    # A detector of the time when no buffers were recorded is loaded as it was then.
    path = tmp_path / "det" / "detector.json"
    content = json.loads(path.read_text())
    del content["buffers"], content["checksum"]
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**content, "checksum": checksum}))
    np.testing.assert_array_equal(FittedDetector.load(tmp_path / "det", Turned(10.0)).score(data[50:]), found)
    FittedDetector.load(tmp_path / "det", Turned(20.0))
    content["buffers"] = {"turns": {"type": 3}}
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**content, "checksum": checksum}))
    with pytest.raises(StoreError, match="does not describe a detector"):
        FittedDetector.load(tmp_path / "det", Turned(10.0))


def test_folders_without_a_detector_are_refused(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(StoreError, match=r"detector\.json"):
            FittedDetector.load(path, MADE.model)


def test_functions_are_never_written(tmp_path):
    fitted = fit(AttributionPatching(target=lambda logits: logits[:, 0]))
    with pytest.raises(StoreError, match="target="):
        fitted.save(tmp_path / "detector")
    assert not list(tmp_path.iterdir())


class Unknown:
    """A reference that no catalogue has."""

    def fit(self, X):
        return Mahalanobis().fit(X)


def test_parts_that_are_in_no_catalogue_are_refused(tmp_path):
    with pytest.raises(StoreError, match="not in the catalogue"):
        fit(Activations(), Unknown()).save(tmp_path / "detector")
    assert not list(tmp_path.iterdir())


def test_a_detector_is_replaced_as_a_whole(saved):
    before = scores_of(saved)
    fit(seed=1).save(saved)
    assert not np.array_equal(scores_of(saved), before)
    np.testing.assert_array_equal(scores_of(saved), fit(seed=1).score(MADE.fresh))
    assert [path.name for path in saved.parent.iterdir()] == ["detector"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("call", [0, 1, 2])
def test_a_write_that_fails_leaves_the_old_detector(saved, monkeypatch, function, call):
    before, real, calls = contents(saved), getattr(os, function), []

    def full(*args):
        calls.append(args)
        if len(calls) == call + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, function, full)
    try:
        fit(seed=1).save(saved)
    except (OSError, StoreError):
        monkeypatch.undo()
        assert contents(saved) == before
        assert [path.name for path in saved.parent.iterdir()] == ["detector"]


def test_a_folder_with_anything_else_is_left_alone(tmp_path, saved):
    for name, files in {
        "photos": ["a.jpg"],
        "mixed": ["detector.json", "notes.txt"],
        "code": ["detector.json"],
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            (folder / file).write_text("mine")
        with pytest.raises(StoreError):
            fit().save(folder)
        assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(StoreError):
        fit().save(saved)
    assert (saved / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError):
        fit().save(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    fit().save(tmp_path / "empty")
    scores_of(tmp_path / "empty")


@pytest.mark.parametrize("path", [".", "", "../here", "absolute"])
@pytest.mark.parametrize("before", ["nothing", "a detector"])
def test_the_folder_that_the_process_works_in_is_never_replaced(tmp_path, monkeypatch, path, before):
    here = tmp_path / "here"
    here.mkdir()
    if before == "a detector":
        fit().save(here)
    monkeypatch.chdir(here)
    known = contents(here)
    with pytest.raises(StoreError, match="works in"):
        fit(seed=1).save(here if path == "absolute" else path)
    with pytest.raises(StoreError, match="works in"):
        require_folder(str(here) if path == "absolute" else path)
    assert os.getcwd() == str(here) and contents(here) == known and list(tmp_path.iterdir()) == [here]
    fit(seed=1).save("inside" if before == "nothing" else "../beside")


@pytest.mark.parametrize("path", [".", "", "..", "/", "folder"])
def test_what_is_written_as_a_file_says_that_a_folder_is_none(tmp_path, monkeypatch, path):
    (tmp_path / "here" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(IsADirectoryError):
        write_whole(Path(path), ["text"])
    with pytest.raises(StoreError, match="cannot be written: it is a folder"):
        Monitor(fit(calibration_share=0.6), 0.1, 0.5).save(path)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "here", tmp_path / "here" / "folder"]


def test_a_link_to_a_detector_is_written_through(tmp_path, saved):
    (tmp_path / "latest").symlink_to(saved, target_is_directory=True)
    np.testing.assert_array_equal(scores_of(tmp_path / "latest"), scores_of(saved))


def test_no_two_parts_of_a_detector_come_from_different_saves(saved, tmp_path):
    fit(seed=1).save(tmp_path / "other")
    (saved / "state.safetensors").write_bytes((tmp_path / "other" / "state.safetensors").read_bytes())
    with pytest.raises(StoreError, match="checksum"):
        scores_of(saved)


def test_a_refitted_estimator_is_checked_against_the_saved_scores(tmp_path, monkeypatch):
    fit(Activations(), OneClassSVM(gamma=0.1)).save(tmp_path / "detector")
    monkeypatch.setattr(OneClassSVM, "score_samples", lambda self, X: np.zeros(len(X)))
    with pytest.raises(StoreError, match="does not give the saved scores"):
        scores_of(tmp_path / "detector")


@pytest.mark.parametrize("there", [True, False])
def test_a_file_is_written_through_a_link(tmp_path, there):
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "state.json", tmp_path / "state.json"
    monitor = Monitor(fit(), 0.1, 0.5)
    if there:
        monitor.save(real)
    link.symlink_to(real)
    monitor(MADE.fresh)
    monitor.save(link)
    assert link.is_symlink() and json.loads(real.read_text())["steps"] == len(MADE.fresh)
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["state.json"]


def test_names_as_long_as_the_system_allows(tmp_path):
    detector = fit()
    for name in ("m" * 250, "é" * 120):
        for _ in range(2):
            Monitor(detector, 0.1, 0.5).save(tmp_path / f"{name}.json")
            detector.save(tmp_path / name)
        assert np.array_equal(scores_of(tmp_path / name), detector.score(MADE.fresh))
    # What is set aside of one is not taken for another that begins alike.
    first, second = tmp_path / ("n" * 249 + "a"), tmp_path / ("n" * 249 + "b")
    for path in (first, second):
        detector.save(path)
    second.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        FittedDetector.load(second, MADE.model)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_seed_of_any_whole_number(tmp_path):
    detector = fit(seed=np.int64(3))
    detector.save(tmp_path / "detector")
    assert type(detector.provenance["seed"]) is int
    assert np.array_equal(scores_of(tmp_path / "detector"), fit(seed=3).score(MADE.fresh))
    with pytest.raises(SpecError, match=r"seed=1\.5"):
        fit(seed=1.5)


def test_what_a_detector_gives_goes_to_another_process(tmp_path):
    detector = fit()
    detection = detector.detect(MADE.fresh)
    again = pickle.loads(pickle.dumps(detection))
    assert np.array_equal(again.p_values, detection.p_values)
    assert again.explain(3).to_data() == detection.explain(3).to_data()
    for cache in (None, tmp_path / "cache"):
        rows = extract(detector, MADE.fresh, cache=cache)
        assert np.array_equal(pickle.loads(pickle.dumps(rows)).values, rows.values)
