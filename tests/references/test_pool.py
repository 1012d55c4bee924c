"""What holds for every reference that compares with untrusted rows; other options; files."""

import inspect

import numpy as np
import pytest
import torch

import causalmad as cm
from causalmad.errors import FitError, StoreError
from causalmad.references.activation_clustering import ActivationClustering
from causalmad.references.density import Density
from causalmad.references.empirical_tails import EmpiricalTails
from causalmad.references.likelihood_ratio import LikelihoodRatio
from causalmad.references.nearest_neighbours import NearestNeighbours
from causalmad.references.positive_unlabelled import PositiveUnlabelled
from causalmad.references.quantum_entropy import QuantumEntropy
from causalmad.references.spectral_signatures import SpectralSignatures
from causalmad.references.state import restored
from causalmad.references.trusted_versus_untrusted import TrustedVersusUntrusted
from causalmad.references.two_gaussians import TwoGaussians
from causalmad.references.variational_autoencoder import VariationalAutoencoder
from causalmad.testing.reference_laws import REFERENCE_LAWS
from tests.references.pools import planted, pool, rows

OFFLINE = (
    ActivationClustering(),
    LikelihoodRatio(),
    PositiveUnlabelled(steps=20),
    QuantumEntropy(),
    SpectralSignatures(),
    TrustedVersusUntrusted(),
    TwoGaussians(),
)
ONLINE = (NearestNeighbours(), EmpiricalTails(), Density(), VariationalAutoencoder(steps=20))
OTHER_OPTIONS = (
    NearestNeighbours(3, normalise=True, most=30),
    EmpiricalTails(two_sided=False),
    Density("mixture"),
    Density(components=2),
    VariationalAutoencoder(latents=2, hidden=5, steps=20, beta=1.0),
    QuantumEntropy(0.0),
    QuantumEntropy(1e6),
    TwoGaussians(1),
    ActivationClustering(1),
    PositiveUnlabelled(hidden=4, steps=100),
    TrustedVersusUntrusted(2, 1.0),
)


@pytest.mark.parametrize("law", REFERENCE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("spec", OTHER_OPTIONS, ids=str)
def test_laws_hold_with_other_options_as_well(spec, law):
    law(spec)


@pytest.mark.parametrize("spec", OFFLINE, ids=str)
def test_no_label_can_be_given(spec):
    assert set(inspect.signature(spec.fit).parameters) <= {"X", "untrusted", "seed"}


@pytest.mark.parametrize("spec", OFFLINE, ids=str)
def test_missing_or_broken_untrusted_rows_are_named(spec):
    with pytest.raises(FitError, match=rf"{type(spec).__name__} got no untrusted rows\n.*unlabelled"):
        spec.fit("not even a table is looked at before")
    broken = pool()
    broken[3, 1] = np.nan
    with pytest.raises(FitError, match=r"untrusted rows hold NaN or infinity in column 1 \(row 3\)"):
        spec.fit(rows(), untrusted=broken)
    with pytest.raises(FitError, match="got 0 untrusted rows"):
        spec.fit(rows(), untrusted=np.empty((0, 5)))
    with pytest.raises(FitError, match="got 1 trusted row\n"):
        spec.fit(rows(1), untrusted=pool())


@pytest.mark.parametrize("spec", [spec for spec in OFFLINE if not isinstance(spec, SpectralSignatures)], ids=str)
def test_the_order_of_the_rows_does_not_matter_and_they_stay_as_they_are(spec):
    trusted, untrusted, new, _ = planted(0, d=5, trusted=100, untrusted=80, test=20, share=0.3, shift=6.0)
    kept = trusted.copy(), untrusted.copy()
    one = spec.fit(trusted, untrusted=untrusted).score_samples(new)
    other = spec.fit(trusted[::-1], untrusted=untrusted[::-1]).score_samples(new)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert (trusted == kept[0]).all() and (untrusted == kept[1]).all()


@pytest.mark.parametrize("spec", OFFLINE + ONLINE, ids=str)
def test_a_detector_with_it_is_saved_and_gives_the_same_bits(spec, tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    data = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    data[80:] *= 3
    untrusted = None if spec in ONLINE else data[80:100]
    fitted = cm.Detector(cm.signatures.Activations(), spec).fit(model, data[:80], untrusted)
    before = fitted.score(data[100:])
    fitted.save(tmp_path / "detector")
    again = cm.FittedDetector.load(tmp_path / "detector", model)
    assert again.spec.reference == spec and again.score(data[100:]).tobytes() == before.tobytes()
    if spec not in ONLINE:
        with pytest.raises(FitError, match="got no untrusted rows"):
            cm.Detector(cm.signatures.Activations(), spec).fit(model, data[:80])


@pytest.mark.parametrize("spec", OFFLINE + ONLINE, ids=str)
def test_a_fit_cannot_be_changed(spec):
    fitted = spec.fit(rows()) if spec in ONLINE else spec.fit(rows(), untrusted=pool())
    for array in fitted.state().values():
        if array.size > 2:
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0


def test_restored_arrays_are_checked():
    shapes = {"a": ("n", "d"), "b": ("d",), "c": (2,)}
    good = {"a": np.ones((3, 4)), "b": np.ones(4), "c": np.ones(2)}
    assert {name: array.shape for name, array in restored("spec", good, shapes).items()} == {
        "a": (3, 4), "b": (4,), "c": (2,)
    }  # fmt: skip
    for change, words in (
        ({"b": np.ones(5)}, r"b has shape \(5,\)\n.*\(4,\)"),
        ({"c": np.ones(3)}, "c has shape"),
        ({"a": np.ones((0, 4))}, "a has shape"),
        ({"a": np.full((3, 4), np.nan)}, "a has shape"),
        ({"a": np.array([["x"]])}, "a is no array of numbers"),
        ({"e": np.ones(1)}, "holds .*'e'"),
    ):
        with pytest.raises(StoreError, match=words):
            restored("spec", {**good, **change}, shapes)
    with pytest.raises(StoreError, match="b holds numbers that are not above zero"):
        restored("spec", {**good, "b": np.zeros(4)}, shapes, positive=("b",))
