"""Who keeps the seed of a fit secret draws it from 63 bits; scikit-learn takes 32. The page on adversaries says so."""

import numpy as np
import pytest

from causalmad import Detector
from causalmad.detector import FittedDetector
from causalmad.detectors import detector
from causalmad.references import ActivationClustering, Density
from causalmad.signatures import Activations
from causalmad.testing.toys import toy

SECRET = 2**62 + 12345
SPECS = {
    "attribution-components": detector("attribution-components"),
    "recommended": detector("recommended"),
    "density": Detector(Activations(), Density()),
    "density of Gaussians": Detector(Activations(), Density("mixture")),
    "activation-clustering": Detector(Activations(), ActivationClustering()),
    "isolation forest": detector("activations-isolation-forest"),
    "autoencoder": detector("activations-vae"),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_seed_of_63_bits_fits_and_comes_back_from_a_file(name, tmp_path):
    made = toy("mlp", trusted=120, fresh=60)
    made.model.eval()
    spec = SPECS[name]
    fitted = spec.fit(made.model, made.trusted, made.fresh if spec.compares else None, seed=SECRET)
    scores = fitted.score(made.fresh)
    assert np.isfinite(scores).all()
    fitted.save(tmp_path / "kept")
    again = FittedDetector.load(tmp_path / "kept", made.model)
    assert again.provenance["seed"] == SECRET
    np.testing.assert_array_equal(again.score(made.fresh), scores)
