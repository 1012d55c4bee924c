"""The references that need to know columns or classes, from a detector to a file and back."""

import numpy as np
import pytest
import torch

from causalmad import Detector
from causalmad.config import from_config, parse_spec, to_config
from causalmad.detector import FittedDetector
from causalmad.errors import FitError
from causalmad.references import (
    ConditionalMahalanobis,
    Mahalanobis,
    PerSite,
    PrincipalComponents,
    RelativeMahalanobis,
    Transformed,
)
from causalmad.signatures import Activations

SPECS = [
    RelativeMahalanobis(),
    ConditionalMahalanobis("1[0]"),  # the very name, though it reads as a glob too
    PrincipalComponents(3),
    Transformed(PerSite(Mahalanobis("low-rank", rank=2), "cauchy")),
    PerSite(Transformed(transform="signed-log")),
    PerSite(RelativeMahalanobis("oas")),
]


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_detector_gives_them_what_they_need_and_saves_them(spec, tmp_path):
    model, data = network(), torch.randn(160, 4, generator=torch.Generator().manual_seed(1))
    fitted = Detector(Activations(), spec).fit(model, data[:140], seed=0)
    scores = fitted.score(data[140:])
    assert np.isfinite(scores).all() and len(set(scores.tolist())) > 5
    fitted.save(tmp_path / "saved")
    assert (FittedDetector.load(tmp_path / "saved", model).score(data[140:]) == scores).all()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_specs_are_plain_data(spec):
    assert from_config("references", to_config("references", spec)) == spec


def test_specs_inside_specs_as_text():
    expected = PerSite(Transformed(Mahalanobis(two_sided=True), "signed-log"), "max")
    text = "per-site[reference=transformed[reference=mahalanobis[two_sided=true],transform=signed-log],combine=max]"
    assert parse_spec("references", text) == expected
    assert parse_spec("references", "principal-components[components=7]") == PrincipalComponents(7)
    assert parse_spec("references", "conditional-mahalanobis[on=heads,residual=mahalanobis]").on == "heads"


def test_without_such_columns_the_nearest_are_named():
    with pytest.raises(FitError, match=r"on='output'(.|\n)*Try one of"):
        Detector(Activations(), ConditionalMahalanobis()).fit(network(), torch.randn(60, 4), seed=0)
