"""Models whose weights accelerate keeps elsewhere until a layer runs, as ``device_map="auto"`` does."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import causalmad as cm
from causalmad.catalogue import catalogue
from causalmad.errors import CausalmadError, FitError, ModelError, StoreError
from causalmad.sites import Place
from causalmad.targets import TopMargin
from causalmad.testing.toys import toy
from causalmad.testing.traces import ToyFailure, failing

accelerate = pytest.importorskip("accelerate")
CPU = torch.device("cpu")
NOT_HERE = {"finetuning-shift": FitError, "functional-coupling": FitError, "traced": ModelError}
DEFAULT_RUN = ("activations", "attribution-patching", "edge-attribution", "functional-coupling", "relevance-patching")
LIGHT = {"functional-coupling": {"draws": 6}, "exact-ablation": {"donors": 2}, "sparse-code": {"steps": 40}}
LIGHT["donor-moments"] = {"draws": 6}


def in_memory(model, folder):
    return accelerate.cpu_offload(model, CPU)


def on_disk(model, folder):
    return accelerate.disk_offload(model, str(folder), CPU)


def in_part(model, folder):
    """One block on disk, all else here, as a device map spreads a model."""
    places = {name: "cpu" for name, part in model.named_modules() if not [*part.children()]}
    places |= {name: "disk" for name in places if ".h.1." in name}
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


WAYS = [in_memory, on_disk, in_part]


@pytest.fixture(params=WAYS)
def away(request, tmp_path):
    """A toy, and the same model with its weights elsewhere."""
    made = toy("gpt2", trusted=30, fresh=8)
    model = request.param(copy.deepcopy(made.model), tmp_path / "weights")
    assert any(value.is_meta for value in model.parameters())
    return made, model


def look(model):
    return [(name, id(value), value.is_meta, value.requires_grad) for name, value in model.named_parameters()]


def test_reads_gradients_and_edits_are_those_of_the_model_at_hand(away):
    made, model = away
    before, found = look(model), []
    places = [Place("transformer.h.0"), Place("transformer.h.1.mlp"), Place("transformer.h.1.attn.c_proj", "input")]
    for each in (made.model, model):
        opened = cm.open_model(each)
        (batch,) = opened.batches(made.fresh)
        run = opened.run(batch, read=places, target=TopMargin())
        early = opened.run(batch, read=places[:1], output=False)
        edited = opened.logits(batch, {places[0]: torch.zeros_like})
        found.append([run.logits, *run.values.values(), *run.grads.values(), *early.values.values(), edited])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert look(model) == before


def test_its_fingerprint_is_that_of_its_weights(away, tmp_path):
    made, model = away
    assert cm.open_model(model).parameter_fingerprints() == cm.open_model(made.model).parameter_fingerprints()
    detector = cm.Detector(cm.signatures.Activations(), cm.references.Mahalanobis("diagonal"))
    fitted = detector.fit(made.model, made.trusted, cache=tmp_path / "cache")
    fitted.save(tmp_path / "det")
    again = cm.FittedDetector.load(tmp_path / "det", model)
    assert np.array_equal(again.score(made.fresh), fitted.score(made.fresh))
    other = copy.deepcopy(made.model)
    with torch.no_grad():
        other.transformer.h[1].mlp.c_fc.weight[0, 0] += 1
    with pytest.raises(StoreError, match=r"transformer.h.1.mlp.c_fc.weight"):
        cm.FittedDetector.load(tmp_path / "det", in_memory(other, tmp_path))


def test_nothing_is_left_after_a_failure_either(away):
    made, model = away
    before = look(model)
    for run in (0, 1):
        with failing(model, run), pytest.raises((ToyFailure, CausalmadError)):
            cm.signatures.AttributionPatching().fit(cm.open_model(model), made.trusted)(made.fresh)
        assert look(model) == before


def test_buffers_that_are_elsewhere_go_back_after_a_failure():
    class Late(torch.nn.BatchNorm1d):
        ready = True

        def forward(self, x):
            if self.ready:
                return super().forward(x)
            raise ToyFailure("in the middle")

    plain = torch.nn.Sequential(torch.nn.Linear(4, 6), Late(6), torch.nn.ReLU(), torch.nn.Linear(6, 2)).eval()
    model, draw = accelerate.cpu_offload(plain, CPU, offload_buffers=True), torch.randn(30, 4)
    fitted = cm.Detector(cm.signatures.Activations()).fit(model, draw)
    before = [(name, id(value), value.is_meta) for name, value in model.named_buffers()]
    model[1].ready = False
    with pytest.raises(ModelError, match="in the middle"):
        fitted.score(draw)
    assert [(name, id(value), value.is_meta) for name, value in model.named_buffers()] == before
    assert all(away for _, _, away in before)


def entries():
    for entry in catalogue("signatures"):
        yield pytest.param(entry, id=entry.name, marks=[] if entry.name in DEFAULT_RUN else pytest.mark.slow)


@pytest.mark.parametrize("entry", entries())
def test_every_signature_gives_the_same_or_says_that_it_cannot(entry, tmp_path):
    made = toy("gpt2", trusted=30, fresh=6)
    spec = made.ready(replace(entry.load()(**entry.defaults), **LIGHT.get(entry.name, {})))
    model = in_part(copy.deepcopy(made.model), tmp_path / "weights")
    before = look(model)
    if entry.name in NOT_HERE:
        with pytest.raises(NOT_HERE[entry.name], match=r"offloaded|elsewhere"):
            spec.fit(cm.open_model(model), made.trusted)
    else:
        found = [spec.fit(cm.open_model(each), made.trusted)(made.fresh).values for each in (made.model, model)]
        assert found[0].tobytes() == found[1].tobytes()
    assert look(model) == before


def test_nnsight_says_that_it_cannot(tmp_path):
    made = toy("gpt2")
    model = in_memory(made.model, tmp_path)
    with pytest.raises(ModelError, match="weights accelerate keeps elsewhere"):
        cm.signatures.Activations().fit(cm.open_model(model, engine="nnsight"), made.trusted)


def test_a_model_that_from_pretrained_spread_out(tmp_path):
    import transformers as hf

    made = toy("gpt2", trusted=60, fresh=10)
    made.model.save_pretrained(tmp_path / "saved")
    places = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.h.0": "cpu", "transformer.h.1": "disk"}
    places |= {"transformer.ln_f": "cpu", "lm_head": "cpu"}
    options = {"device_map": places, "offload_folder": str(tmp_path / "weights")}
    model = hf.GPT2LMHeadModel.from_pretrained(tmp_path / "saved", **options)
    plain = hf.GPT2LMHeadModel.from_pretrained(tmp_path / "saved")
    assert any(value.is_meta for value in model.parameters())
    detector = cm.Detector(cm.signatures.AttributionPatching(), cm.references.Mahalanobis("diagonal"))
    scores = [detector.fit(each, made.trusted).score(made.fresh) for each in (plain, model)]
    assert np.array_equal(*scores)
    auto = hf.GPT2LMHeadModel.from_pretrained(tmp_path / "saved", device_map="auto")
    assert np.array_equal(detector.fit(auto, made.trusted).score(made.fresh), scores[0])
