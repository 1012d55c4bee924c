import copy
import json
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from causalmad import open_model
from causalmad.errors import FitError
from causalmad.signatures import Activations, SparseCode
from causalmad.signatures.autoencoders import Autoencoder, load, train
from causalmad.targets import ClassLogit
from causalmad.testing.toys import toy
from tests.signatures.combined import survives
from tests.twins import sparse_code as twin

MADE = toy("mlp", trusted=40, fresh=6)
MODEL = open_model(MADE.model)
SMALL = SparseCode(latents=24, k=4, steps=60)


def arrays(features=16, latents=20, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (features, latents), "b_enc": (latents,), "W_dec": (latents, features), "b_dec": (features,)}
    return {name: torch.randn(*shape, generator=draw) for name, shape in shapes.items()}


def folder(path, config, tensors):
    path.mkdir()
    (path / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, path / "sae_weights.safetensors")
    return str(path)


def plain(tensors):
    return {name: value.double().numpy() for name, value in tensors.items()}


@pytest.mark.parametrize("k", [0, 3, 20])
def test_a_file_is_encoded_and_decoded_as_the_twin_does(tmp_path, k):
    tensors = arrays()
    save_file(tensors, tmp_path / "sae.safetensors")
    found, own = load(str(tmp_path / "sae.safetensors"), k), plain(tensors)
    values = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    expected = twin.encode(values.double().numpy(), own["W_enc"], own["b_enc"], own["b_dec"], k)
    np.testing.assert_allclose(found.encode(values), expected, rtol=1e-4, atol=1e-5)
    decoded = twin.decode(expected, own["W_dec"], own["b_dec"])
    np.testing.assert_allclose(found.decode(found.encode(values)), decoded, rtol=1e-4, atol=1e-4)


CONFIGS = [
    ({"architecture": "standard", "activation_fn": "relu", "apply_b_dec_to_input": True}, 0, False),
    ({"architecture": "standard", "activation_fn_str": "relu", "apply_b_dec_to_input": False}, 0, False),
    ({"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}, 4, False),
    ({"architecture": "topk", "k": 5, "normalize_activations": "expected_average_only_in"}, 5, False),
    ({"architecture": "jumprelu", "apply_b_dec_to_input": False, "normalize_activations": "none"}, 0, True),
]


@pytest.mark.parametrize(("config", "k", "threshold"), CONFIGS)
def test_a_folder_of_sae_lens(tmp_path, config, k, threshold):
    tensors = arrays()
    if threshold:
        tensors["threshold"] = torch.linspace(-1, 5, 20)
    found, own = load(folder(tmp_path / "sae", config, tensors), 7), plain(tensors)
    values = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    centre = own["b_dec"] if config.get("apply_b_dec_to_input", True) else np.zeros(16)
    expected = twin.encode(values.double().numpy(), own["W_enc"], own["b_enc"], centre, k, own.get("threshold"))
    np.testing.assert_allclose(found.encode(values), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"architecture": "gated"}, "gated"),
        ({"architecture": "standard", "normalize_activations": "layer_norm"}, "layer_norm"),
        ({"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": True}, "lengths of their decoder"),
        ({"architecture": "topk"}, "how many"),
        ({"architecture": "jumprelu"}, "thresholds"),
    ],
)
def test_autoencoders_of_other_kinds_are_refused(tmp_path, config, match):
    with pytest.raises(FitError, match=match):
        load(folder(tmp_path / "sae", config, arrays()), 0)


def test_damaged_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("no arrays")
    (tmp_path / "empty").mkdir()
    save_file({**arrays(), "W_dec": torch.zeros(20, 15)}, tmp_path / "shape")
    save_file({"W_enc": torch.zeros(2, 3)}, tmp_path / "part")
    for name, match in (
        ("text", "read"),
        ("empty", "read"),
        ("shape", "shapes"),
        ("part", "b_enc"),
        ("none", "no auto"),
    ):
        with pytest.raises(FitError, match=match):
            load(str(tmp_path / name), 0)


def test_a_name_on_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(FitError, match=r"causalmad\[sae\]"):
        load("gpt2-small-res-jb:blocks.8.hook_resid_pre", 0)
    tensors = arrays()
    sae = types.SimpleNamespace(
        state_dict=lambda: tensors, cfg=types.SimpleNamespace(to_dict=lambda: {"k": 3, "architecture": "topk"})
    )
    fake = types.SimpleNamespace(SAE=types.SimpleNamespace(from_pretrained=lambda release, name: sae))
    monkeypatch.setitem(sys.modules, "sae_lens", fake)
    found = load("release:blocks.8.hook_resid_pre", 0)
    assert found.k == 3 and torch.equal(found.W_enc, tensors["W_enc"])


def test_training_finds_what_is_sparse():
    draw = torch.Generator().manual_seed(0)
    words = torch.nn.functional.normalize(torch.randn(24, 16, generator=draw), dim=1)
    codes = torch.rand(900, 24, generator=draw) * (torch.rand(900, 24, generator=draw) < 0.08)
    values = 7 * codes @ words + 3
    shares = []
    for steps in (1, 400):
        found = train(values[:600], latents=64, k=6, steps=steps, seed=0)
        left = values[600:] - found.decode(found.encode(values[600:]))
        shares.append(float(left.square().sum() / (values[600:] - values[:600].mean(0)).square().sum()))
    assert shares[1] < 0.1 < shares[0]
    torch.testing.assert_close(found.W_dec.norm(dim=1), torch.ones(64))
    again = train(values[:600], latents=64, k=6, steps=400, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(found.tensors().values(), again.tensors().values()))
    assert not torch.equal(train(values[:600], 64, 6, 3, seed=1).W_enc, train(values[:600], 64, 6, 3, seed=0).W_enc)


def test_columns_are_latents_counts_and_error():
    fitted = SMALL.fit(MODEL, MADE.trusted)
    reader = Activations("4").fit(MODEL, MADE.trusted)
    kept = [list(MADE.trusted.digests).index(key) for key in fitted.digests]
    own = plain(fitted.code.tensors())
    trusted = reader(MADE.trusted).values[kept].astype(float)

    def encode(values):
        return twin.encode(values / fitted.code.scale, own["W_enc"], own["b_enc"], own["b_dec"], 4)

    codes = encode(trusted)
    assert torch.equal(fitted.chosen, torch.tensor([i for i in range(24) if (codes[:, i] > 0).any()]))
    for inputs, places in (
        (MADE.fresh, [None] * 6),
        (MADE.trusted, [fitted.digests.index(d) for d in MADE.trusted.digests]),
    ):
        values = reader(inputs).values.astype(float)
        latents, found = encode(values), fitted(inputs).values
        np.testing.assert_allclose(found[:, :-4], latents[:, fitted.chosen], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found[:, -4:-1], twin.counts(latents, codes, places), rtol=1e-3, atol=1e-4)
        left = values - twin.decode(latents, own["W_dec"], own["b_dec"]) * fitted.code.scale
        usual = np.sqrt(((trusted - trusted.mean(0)) ** 2).sum(1).mean())
        np.testing.assert_allclose(found[:, -1], np.sqrt((left**2).sum(1)) / usual, rtol=1e-3)


def test_what_trained_the_autoencoder_is_left_out_of_the_reference(tmp_path):
    fitted = SMALL.fit(MODEL, MADE.trusted)
    assert len(set(fitted.donor_digests)) == 20 and set(fitted.donor_digests) < set(fitted.digests)
    save_file(arrays(), tmp_path / "sae.safetensors")
    assert SparseCode(weights=str(tmp_path / "sae.safetensors")).fit(MODEL, MADE.trusted).donor_digests == ()


@pytest.mark.parametrize(("name", "site"), [("mlp", "4"), ("conv", "2")])
def test_attributions_are_what_moving_along_a_latent_does(tmp_path, name, site):
    """Central differences of moving the site's features along each active latent."""
    made = toy(name, trusted=12, fresh=3)
    model = copy.deepcopy(made.model).eval().double()
    width = 16 if name == "mlp" else 4
    save_file(arrays(width), tmp_path / "sae.safetensors")
    spec = SparseCode(site, basis="attributions", weights=str(tmp_path / "sae.safetensors"), k=5, target=ClassLogit(1))
    fitted = spec.fit(open_model(copy.deepcopy(made.model)), made.trusted)
    latents = SparseCode(site, weights=spec.weights, k=5).fit(open_model(made.model), made.trusted)(made.fresh).values
    found = fitted(made.fresh).values
    cut = int(site) + 1
    inner = model[:cut](made.fresh.main.double())
    for column, latent in enumerate(fitted.chosen.tolist()):
        way = fitted.code.W_dec[latent].double().reshape(1, -1, *[1] * (inner.ndim - 2)) * 1e-5
        with torch.no_grad():
            slope = (model[cut:](inner + way) - model[cut:](inner - way))[:, 1] / 2e-5
        np.testing.assert_allclose(found[:, column], latents[:, column] * slope.numpy(), rtol=2e-3, atol=2e-4)


def test_it_survives(tmp_path):
    survives(SMALL, MADE, tmp_path / "a")
    survives(SparseCode(latents=24, k=4, steps=20, basis="attributions"), toy("gpt2", 40, 4), tmp_path / "b")


def test_named_errors(tmp_path):
    save_file(arrays(7), tmp_path / "sae.safetensors")
    with pytest.raises(FitError, match="7 features"):
        SparseCode(weights=str(tmp_path / "sae.safetensors")).fit(MODEL, MADE.trusted)
    with pytest.raises(FitError, match="sites"):
        SparseCode("layers").fit(MODEL, MADE.trusted)
    for wrong in (
        {"k": 0},
        {"k": 300},
        {"basis": "both"},
        {"steps": 0},
        {"basis": "attributions", "position": "all:max"},
    ):
        with pytest.raises(FitError):
            SparseCode(**wrong)


def test_zero_keeps_all():
    tensors = {**arrays(4, 6), "centre": torch.zeros(4), "threshold": torch.zeros(6)}
    found = Autoencoder.of(tensors, 0, 1.0).encode(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    assert (found > 0).sum(1).max() > 2
