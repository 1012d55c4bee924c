"""batch_size="auto": sorted by length, halved where memory runs out, and no score depends on it."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import causalmad as cm
from causalmad.catalogue import catalogue
from causalmad.errors import ModelError
from causalmad.inputs import Inputs
from causalmad.models.batching import DEFAULT, Batching, each_batch, out_of_memory, within_memory
from causalmad.testing.toys import toy

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB."
CPU = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
LIGHT = {
    "functional-coupling": {"draws": 6},
    "exact-ablation": {"donors": 2},
    "sparse-code": {"steps": 40},
    "donor-moments": {"draws": 6},
}
DEFAULT_RUN = ("activations", "attribution-patching", "causal-scrubbing", "concat", "gram-deviation", "path-patching")


def entries(default=DEFAULT_RUN):
    for entry in catalogue("signatures"):
        yield pytest.param(entry, id=entry.name, marks=[] if entry.name in default else pytest.mark.slow)


@contextlib.contextmanager
def small(model, most, said=CUDA, seen=None):
    """A block in which the model runs out of memory on more than ``most`` rows."""

    def before(_, args, kwargs):
        rows = len(args[0] if args else next(iter(kwargs.values())))
        if rows > most:
            raise RuntimeError(said)
        if seen is not None:
            seen.append(rows)

    handle = model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("said", [CUDA, CPU])
@pytest.mark.parametrize("name", ["mlp", "gpt2"])
def test_batches_are_halved_until_they_fit_and_stay_so(name, said):
    made = toy(name, trusted=100, fresh=90)
    plain = cm.open_model(made.model)
    expected = cm.signatures.Activations().fit(plain, made.trusted)(made.fresh).values
    seen = []
    model = cm.open_model(made.model, batch_size="auto")
    with small(made.model, 13, said, seen):
        fitted = cm.signatures.Activations().fit(model, made.trusted)
        found = fitted(made.fresh).values
        assert model.batch_size == 8 and max(seen) == 8
        with pytest.raises(ModelError, match="auto"):
            cm.signatures.Activations().fit(plain, made.trusted)(made.fresh)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_inputs_of_like_length_share_a_batch():
    made = toy("gpt2", fresh=90)
    model = cm.open_model(made.model, batch_size="auto")
    batches = list(model.batches(made.fresh, size=16))
    lengths = [made.fresh.lengths[batch.rows] for batch in batches]
    assert np.array_equal(np.concatenate(lengths), np.sort(made.fresh.lengths))
    assert sorted(np.concatenate([batch.rows for batch in batches])) == list(range(90))
    usual = list(cm.open_model(made.model).batches(made.fresh, size=16))
    assert np.array_equal(np.concatenate([batch.rows for batch in usual]), np.arange(90))
    padded = [sum(batch.mask.numel() for batch in each) for each in (batches, usual)]
    assert padded[0] < padded[1]


@pytest.mark.parametrize("entry", entries())
def test_no_signature_depends_on_it(entry):
    spec = entry.load()(**entry.defaults)
    options = LIGHT.get(entry.name, {})
    made = toy("gpt2", trusted=24, fresh=20)
    try:
        spec = made.ready(replace(spec, **options))
        detector = cm.Detector(spec, cm.references.Mahalanobis("diagonal"))
        expected = detector.fit(cm.open_model(made.model), made.trusted)
    except cm.CausalmadError:
        made = toy("mlp", trusted=24, fresh=20)
        spec = made.ready(replace(entry.load()(**entry.defaults), **options))
        detector = cm.Detector(spec, cm.references.Mahalanobis("diagonal"))
        expected = detector.fit(cm.open_model(made.model), made.trusted)
    model = cm.open_model(made.model, batch_size="auto")
    with small(made.model, 17):
        fitted = detector.fit(model, made.trusted)
        found = cm.extract(fitted, made.fresh)
    whole = expected.signature(made.fresh).values
    # A kurtosis of six draws loses a digit.
    limit = 1e-4 if entry.name == "donor-moments" else 1e-5
    assert np.abs(found.values - whole).max() <= limit * max(np.abs(whole).max(), 1e-3)
    trusted = expected.trusted.values
    assert np.abs(fitted.trusted.values - trusted).max() <= limit * max(np.abs(trusted).max(), 1e-3)


@pytest.mark.parametrize("entry", entries(("path-patching", "resampling-profile")))
def test_one_row_a_run_is_enough(entry):
    """Variants, donors and points of a line that share a run grow fewer too, once batches are of one input."""
    spec, options = entry.load()(**entry.defaults), LIGHT.get(entry.name, {})
    made = toy("gpt2", trusted=12, fresh=2)
    try:
        spec = made.ready(replace(spec, **options))
        expected = spec.fit(cm.open_model(made.model), made.trusted)
    except cm.CausalmadError:
        made = toy("mlp", trusted=12, fresh=2)
        spec = made.ready(replace(spec, **options))
        expected = spec.fit(cm.open_model(made.model), made.trusted)
    model, seen = cm.open_model(made.model, batch_size="auto"), []
    model.batching.size = 1
    with small(made.model, 1, seen=seen):
        fitted = within_memory(model, lambda: spec.fit(model, made.trusted))
        found = cm.extract(fitted, made.fresh, model=model).values
    assert set(seen) <= {1}
    wanted = expected(made.fresh).values
    limit = 1e-4 if entry.name == "donor-moments" else 1e-5
    assert np.abs(found - wanted).max() <= limit * max(np.abs(wanted).max(), 1e-3)


def test_variants_of_an_input_are_halved_once_batches_are_of_one():
    batching, rows = Batching(4, auto=True), []
    while batching.shrink(MemoryError()):
        rows.append((batching.size, batching.stack))
    assert rows == [(2, 16), (1, 8), (1, 4), (1, 2), (1, 1)]
    assert not Batching(4).shrink(MemoryError()) and not Batching(4, auto=True).shrink(ValueError())


def test_what_never_fits_is_an_error_and_other_errors_are_not_tried_again():
    made = toy("mlp")
    model = cm.open_model(made.model, batch_size="auto")
    with small(made.model, 0), pytest.raises(ModelError, match="out of memory"):
        cm.extract(
            cm.signatures.Activations().fit(cm.open_model(toy("mlp").model), made.trusted), made.fresh, model=model
        )
        cm.signatures.Activations().fit(model, made.trusted)
    assert model.batch_size in (1, DEFAULT)
    calls = []

    def fail():
        calls.append(1)
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        within_memory(model, fail)
    assert len(calls) == 1


def test_every_input_is_done_once_whichever_batches_fail():
    made = toy("gpt2", fresh=50)
    model = cm.open_model(made.model, batch_size="auto")
    done, left = [], iter([False, False, True, False, True, True, False] + [False] * 200)

    def work(batch):
        if next(left):
            raise MemoryError
        done.extend(batch.rows.tolist())

    each_batch(model, made.fresh, None, work)
    assert sorted(done) == list(range(50))
    model = cm.open_model(made.model, batch_size="auto")
    model.batching.size = 16
    tries = []
    each_batch(model, made.fresh, 12, lambda batch: tries.append(len(batch)))
    assert tries == [12, 12, 12, 12, 2]


def test_out_of_memory_is_known_by_what_caused_an_error():
    try:
        try:
            raise MemoryError
        except MemoryError as error:
            raise ModelError("the model raised") from error
    except ModelError as error:
        assert out_of_memory(error)
    assert not out_of_memory(ValueError("out of memory")) and not out_of_memory(None)
    assert out_of_memory(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))


def test_views_share_the_size_and_saved_detectors_remember(tmp_path):
    made = toy("mlp", trusted=40)
    model = cm.open_model(made.model, batch_size="auto")
    view = cm.open_model(model, side="right")
    model.batching.size = 4
    assert view.batch_size == 4 and cm.open_model(model, batch_size=7).batch_size == 7
    cm.Detector(cm.signatures.Activations()).fit(view, made.trusted).save(tmp_path / "det")
    assert cm.FittedDetector.load(tmp_path / "det", made.model).model.batching.auto
    for wrong in (0, -1, "many", True, 2.5):
        with pytest.raises(ModelError, match="batch_size="):
            cm.open_model(made.model, batch_size=wrong)


def test_rows_that_take_no_mask_still_share_a_batch_only_with_their_length():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(9, 4)

        def forward(self, input_ids):
            return self.words(input_ids).mean(1)

    rows = [torch.arange(1, 2 + i % 3) for i in range(12)]
    inputs = Inputs.of({"input_ids": rows})
    for size in (64, "auto"):
        batches = list(cm.open_model(Sums(), batch_size=size).batches(inputs))
        assert [batch.main.shape for batch in batches] == [(4, 1), (4, 2), (4, 3)]


def test_who_watches_is_told_how_far_every_round_is_and_nobody_afterwards():
    made, told = toy("mlp", trusted=10, fresh=4), []
    model = cm.open_model(made.model, batch_size=4)
    with model.batching.watched(lambda *far: told.append(far)):
        assert [len(batch) for batch in model.batches(model.inputs(made.trusted))] == [4, 4, 2]
        assert told == [(0, 10), (4, 10), (8, 10), (10, 10)]
        with pytest.raises(ZeroDivisionError), model.batching.watched(None):
            _ = 1 / 0
        list(cm.open_model(model).batches(model.inputs(made.fresh)))  # a view of the same model
        assert told[4:] == [(0, 4), (4, 4)]
    list(model.batches(model.inputs(made.fresh)))
    assert len(told) == 6
