"""What the campaign found, each in the smallest form in which it happened."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from safetensors.numpy import save as to_bytes
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from sklearn.svm import OneClassSVM
from torch import nn

import causalmad as cm
import causalmad.evaluation.bench as bench_module
from causalmad import Detector, FittedDetector, Inputs, Monitor
from causalmad.cli.files import write_lines
from causalmad.errors import CausalmadError, HypothesisError, InputsError, ModelError, SiteError, StoreError, TaskError
from causalmad.evaluation import metrics
from causalmad.evaluation.bench import bench
from causalmad.evaluation.logs import Log, place
from causalmad.evaluation.suites import Suite
from causalmad.evaluation.workers import end_with_parent
from causalmad.extraction.shards import DamagedShardError, check_shard
from causalmad.hypotheses.circuit import Circuit
from causalmad.models import open_model
from causalmad.models.fingerprint import value_digest
from causalmad.references import PerSite
from causalmad.rows import as_inputs, chunked, each_row
from causalmad.sites import Site
from causalmad.store import _exchange
from causalmad.testing.toys import toy
from causalmad.whole import read_whole
from tests.faults.detectors import JSON, TENSORS, sealed
from tests.faults.models import Changing
from tests.faults.plain import _circuit, _fitted_words, _logs, _sealed, fitted

MADE = toy("mlp", trusted=60, fresh=6)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    Detector(cm.signatures.Activations()).fit(MADE.model, MADE.trusted).save(tmp_path / "det")
    return tmp_path / "det"


def forge(folder: Path, tensors: bytes | None = None, **changes: Any) -> None:
    content = {**json.loads((folder / JSON).read_bytes()), **changes}
    for name, data in sealed(content, tensors or (folder / TENSORS).read_bytes()).items():
        (folder / name).write_bytes(data)


def test_a_forged_tensor_file_is_an_error_of_the_store(saved: Path) -> None:
    forge(saved, b"\xff" * 64)
    with pytest.raises(StoreError, match="Safetensor"):
        FittedDetector.load(saved, MADE.model)


def test_trusted_signatures_that_do_not_fit_are_refused(saved: Path) -> None:
    for ids in ([], ["a"], "abc", None):
        forge(saved, trusted_ids=ids)
        with pytest.raises(StoreError, match="saved trusted signatures"):
            FittedDetector.load(saved, MADE.model)


def test_a_provenance_that_no_fit_writes_is_refused(saved: Path) -> None:
    known = json.loads((saved / JSON).read_bytes())["provenance"]
    for changed in (3, {}, {**known, "ids": []}, {**known, "seed": "x"}, {**known, "versions": None}):
        forge(saved, provenance=changed)
        with pytest.raises(StoreError, match="provenance"):
            FittedDetector.load(saved, MADE.model)


def test_infinite_weights_are_refused() -> None:
    scores = np.arange(9.0)
    lengths = {"length": np.arange(9.0)}
    made = cm.calibration.Weighted(("length",)).fit(scores, covariates=lengths, untrusted=lengths)
    state = made.state()
    assert cm.calibration.Weighted(("length",)).restore(state).weights.tolist() == made.weights.tolist()
    with pytest.raises(StoreError, match="broken"):
        cm.calibration.Weighted(("length",)).restore({**state, "weights": np.full(9, np.inf)})


def test_what_fails_later_in_a_loaded_detector_is_blamed_on_its_file(saved: Path) -> None:
    content = json.loads((saved / JSON).read_bytes())
    content["signature_data"]["sites"] = content["signature_data"]["sites"][:1]
    forge(saved, signature_data=content["signature_data"])
    with pytest.raises((StoreError, ModelError)):
        FittedDetector.load(saved, MADE.model).detect(MADE.fresh, alpha=0.9)


@pytest.mark.parametrize("options", [{"n_estimators": 10**9}, {"n_jobs": 10**6}, {"n_estimators": 2**20 + 1}])
def test_options_that_no_detector_takes_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    made = Detector(cm.signatures.Activations(), IsolationForest(n_estimators=2)).fit(MADE.model, MADE.trusted)
    made.save(tmp_path / "det")
    reference = json.loads((tmp_path / "det" / JSON).read_bytes())["reference"]
    forge(tmp_path / "det", reference={**reference, "options": {**reference["options"], **options}})
    with pytest.raises(StoreError, match="isolation-forest with"):
        FittedDetector.load(tmp_path / "det", MADE.model)


@pytest.mark.parametrize(
    "estimator", [IsolationForest(n_estimators=2), GaussianMixture(reg_covar=0.1), OneClassSVM()], ids=repr
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_file_does_not_make_estimators_print(tmp_path: Path, capfd: Any, estimator: Any, inside: bool) -> None:
    reference = PerSite(estimator, "max") if inside else estimator
    made = Detector(cm.signatures.Activations(), reference).fit(MADE.model, MADE.trusted)
    made.save(tmp_path / "det")
    wanted = made.score(MADE.fresh)
    content = json.loads((tmp_path / "det" / JSON).read_bytes())["reference"]
    owner = content["options"]["reference"] if inside else content
    speech = {key: 2 for key in owner["options"] if key.startswith("verbose")}
    owner["options"].update(speech)
    forge(tmp_path / "det", reference=content)
    capfd.readouterr()
    loaded = FittedDetector.load(tmp_path / "det", MADE.model)
    np.testing.assert_array_equal(loaded.score(MADE.fresh), wanted)
    assert speech and capfd.readouterr() == ("", "")


def test_a_save_that_was_killed_between_two_renames_loses_nothing(saved: Path, monkeypatch: Any) -> None:
    before = FittedDetector.load(saved, MADE.model).score(MADE.fresh)
    aside = saved.parent / f".{saved.name}.old.x"
    os.replace(saved, aside)
    np.testing.assert_array_equal(FittedDetector.load(saved, MADE.model).score(MADE.fresh), before)
    Detector(cm.signatures.Activations()).fit(MADE.model, MADE.trusted, seed=1).save(saved)
    assert [path.name for path in saved.parent.iterdir()] == ["det"]
    assert not np.array_equal(FittedDetector.load(saved, MADE.model).score(MADE.fresh), before)


def test_two_savers_at_once_both_end(saved: Path) -> None:
    """Somebody else puts a detector in place between the two renames of a save."""
    fresh, real, turns = saved.parent / "fresh", os.replace, []
    fresh.mkdir()
    (fresh / JSON).write_text("new")

    def replace(source: Any, target: Any) -> None:
        real(source, target)
        if not turns:
            turns.append(1)
            saved.mkdir()
            (saved / JSON).write_text("other")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replace)
        _exchange(fresh, saved)
    assert (saved / JSON).read_text() == "new"


def test_a_full_disk_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: fitted().save(tmp_path / "det"),
        lambda: Monitor(fitted(), alpha=0.1).save(tmp_path / "m.json"),
        lambda: write_lines(str(tmp_path / "out.jsonl"), ["{}"]),
        lambda: _logs()[0].write(tmp_path),
    ):
        with pytest.raises(StoreError, match="cannot be written: No space left"):
            write()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "detector.json")
    with pytest.raises(OSError, match="no regular file"):
        read_whole(tmp_path / "detector.json")
    with pytest.raises(StoreError, match="no regular file"):
        FittedDetector.load(tmp_path, MADE.model)


@pytest.mark.parametrize(
    "change", [{"detector": None}, {"steps": 1e308 * 10}, {"steps": 2**50}, {"highest": 10**400}, {"log_stakes": 3}]
)
def test_a_forged_monitor_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "m.json"
    Monitor(fitted(), alpha=0.1).save(path)
    content = {**json.loads(path.read_bytes()), **change}
    path.write_bytes(_sealed({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(StoreError):
        Monitor.load(path, fitted())


@pytest.mark.parametrize(
    "change",
    [
        *({"task": None}, {"seed": "0"}, {"ids": [1, 2]}, {"scores": []}, {"labels": ["a"]}, {"result": {}}),
        *({"fingerprints": 3}, {"card": []}, {"labels": [0] * 60}),
    ],
)
def test_a_forged_log_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = _logs()[0].write(tmp_path)
    assert Log.read(path).auroc == _logs()[0].auroc
    path.write_bytes(_sealed({**json.loads(path.read_bytes()), **change}))
    with pytest.raises(StoreError, match="is no log"):
        Log.read(path)


def test_infinite_scores_rank_like_any_other() -> None:
    labels, scores = np.array([0, 1, 0, 1, 1, 0]), np.array([0.1, np.inf, 0.5, 0.4, np.inf, -np.inf])
    finite = np.nan_to_num(scores, posinf=99.0, neginf=-99.0)
    for measure in (metrics.auroc, metrics.average_precision, partial(metrics.tpr_at_fpr, fpr=0.4)):
        assert measure(labels, scores) == measure(labels, finite)


def test_a_log_stays_in_its_folder(tmp_path: Path) -> None:
    for task in ("..", ".", "../x", "a/../../b"):
        assert place(tmp_path, task, "d", 0).resolve().parent.parent == tmp_path / "logs"


def test_a_site_cannot_name_more_than_there_is_memory_for() -> None:
    for text in ("0#neuron=0-99999999999", "0#head=5,0-99999999999", "0#head=0-2000000"):
        with pytest.raises(SiteError, match="more than"):
            Site.parse(text)
    assert len(Site.parse("0#neuron=0-4095").neurons) == 4096


def test_a_dense_graph_of_cycles_is_refused_at_once() -> None:
    graph = nx.complete_graph(40, create_using=nx.DiGraph)
    with pytest.raises(HypothesisError, match="cycle"):
        cm.Hypothesis(graph)


@pytest.mark.parametrize("tolerance", [10**400, float("inf"), float("nan"), 0, "x"])
def test_a_tolerance_that_is_no_number_is_refused(tolerance: Any) -> None:
    graph = nx.DiGraph()
    graph.add_node("a", at="1", tolerance=tolerance)
    graph.add_edge("a", cm.OUTPUT)
    with pytest.raises(HypothesisError, match="no positive number"):
        cm.Hypothesis(graph)


@pytest.mark.parametrize(
    "change",
    [
        *({"nodes": [["a", 3]]}, {"nodes": [["a", {"at": 5}]]}, {"nodes": [["a", {"weight": "x"}]]}, {"total": -1}),
        *({"edges": [[1, 2, 0.5]]}, {"edges": [["a", "b", 10**400]]}, {"level": "nodes"}),
    ],
)
def test_a_forged_circuit_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match="circuit"):
        Circuit.from_json(json.dumps({**json.loads(_circuit()), **change}))


def test_a_name_that_stands_twice_in_a_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"x": [1, 2]}\n{"x": [1, 2], "x": [3, 4]}\n')
    with pytest.raises(InputsError, match=r"line 2.*twice"):
        list(each_row(str(path)))


def test_the_text_is_the_same_field_in_every_chunk(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "w2", "label": 0}\n{"text": 0, "label": "w3 w4"}\n')
    opened = open_model(_fitted_words().model, tokenizer=_fitted_words().model.tokenizer)
    with pytest.raises(InputsError, match="line 2: field 'text' is a int"):
        list(chunked(each_row(str(path)), opened, size=1))
    with pytest.raises(InputsError, match="line 2: field 'text'"):
        as_inputs(list(each_row(str(path))), opened)


def test_half_a_surrogate_pair_is_named_with_its_row() -> None:
    with pytest.raises(InputsError, match="row 1 holds half"):
        _fitted_words().detect(["w2", "\ud800"], alpha=0.9)


def test_empty_texts_alone_are_named() -> None:
    with pytest.raises(InputsError, match="no tokens"):
        _fitted_words().detect([""], alpha=0.9)


def test_a_forged_shard_is_left_out(tmp_path: Path) -> None:
    scalar = to_bytes({"keys": np.zeros((1, 16), np.uint8), "values": np.zeros((), np.float32)})
    for data in (scalar, (2**63).to_bytes(8, "little"), b"\x02\0\0\0\0\0\0\0{}", b'\x0b\0\0\0\0\0\0\0{"keys": 3 }'):
        path = tmp_path / f"{hashlib.blake2b(data, digest_size=16).hexdigest()}.safetensors"
        path.write_bytes(data)
        with pytest.raises(DamagedShardError):
            check_shard(path, 3)


def test_quantised_weights_count_in_the_fingerprint() -> None:
    values = [torch.randn(200, 200, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    values[1][100, 100] += 1
    packed = [(torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), None) for value in values]
    assert value_digest(packed[0]) != value_digest(packed[1])
    assert value_digest(packed[0]) == value_digest((packed[0][0].clone(), None))


@pytest.mark.parametrize(
    "signature",
    [
        cm.signatures.ResamplingProfile(donors=2),
        cm.signatures.ExactAblation(),
        cm.signatures.Conditional(cm.signatures.Activations()),
    ],
)
def test_a_model_that_changes_its_width_is_named(signature: Any) -> None:
    said = []
    for after in range(1, 12):
        try:
            Detector(signature).fit(Changing("wider", after), MADE.trusted).score(MADE.fresh)
        except CausalmadError as error:
            said.append(str(error))
    assert any("in one run and" in text for text in said), said


def test_a_single_number_in_place_of_logits_is_named() -> None:
    class Single(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum()

    opened = open_model(Single())
    with pytest.raises(ModelError, match="a single number for 6 inputs"):
        opened.logits(next(opened.batches(MADE.fresh)))


def test_a_wrapper_and_its_model_wait_for_each_other() -> None:
    model = toy("mlp").model
    order: list[str] = []
    with open_model(model).quiet():

        def look() -> None:
            with open_model(nn.Sequential(model)).quiet(), open_model(model[0]).quiet():
                order.append("wrapper")

        thread = threading.Thread(target=look)
        thread.start()
        time.sleep(0.05)
        order.append("model")
    thread.join()
    assert order == ["model", "wrapper"]


def test_a_bench_that_loses_a_process_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, *args: Any, **options: Any) -> None:
            assert options["initializer"] is end_with_parent

        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *args: Any) -> None:
            """As a pool."""

        def shutdown(self, **options: Any) -> None:
            """As a pool."""

        def submit(self, function: Any, job: Any) -> Any:
            done = bench_module.Future()
            done.set_exception(BrokenProcessPool("gone"))
            return done

    monkeypatch.setattr("causalmad.evaluation.workers.ProcessPoolExecutor", Broken)
    with pytest.raises(TaskError, match="ended in the middle"):
        bench(Suite("small", ("planted-routes",), {"one": "activations+mahalanobis"}, 1), tmp_path)


def _sleeper(number: Any) -> None:
    end_with_parent()
    number.value = os.getpid()
    time.sleep(60)


def _parent(number: Any) -> None:
    context = multiprocessing.get_context("fork")
    context.Process(target=_sleeper, args=(number,)).start()
    time.sleep(60)


def test_a_worker_ends_with_the_process_that_started_it() -> None:
    context = multiprocessing.get_context("fork")
    number = context.Value("i", 0)
    parent = context.Process(target=_parent, args=(number,))
    parent.start()
    for _ in range(500):
        if number.value:
            break
        time.sleep(0.02)
    parent.kill()
    parent.join()
    for _ in range(500):
        state = Path(f"/proc/{number.value}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.02)
    os.kill(number.value, 9)
    pytest.fail("it outlives the process that started it")


def test_copies_of_trusted_inputs_stay_whole_when_shown() -> None:
    """A text of somebody else in a table on a terminal that takes UTF-8 only."""
    found = fitted().detect(Inputs.of(MADE.fresh.main, ids=[f"\ud800{i}" for i in range(6)]), alpha=0.9)
    str(found).encode("utf-8", "backslashreplace")
