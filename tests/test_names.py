"""Detectors as text, there and back."""

from __future__ import annotations

import pytest
from sklearn.ensemble import IsolationForest

from causalmad.calibration import Conformal
from causalmad.detector import Detector
from causalmad.errors import SpecError
from causalmad.names import detector_text, parse_detector
from causalmad.references import Mahalanobis
from causalmad.signatures import Activations, AttributionPatching

TEXTS = [
    "activations+mahalanobis",
    "attribution-patching[units=blocks]+mahalanobis",
    "attribution-patching[units=blocks;heads,steps=8]+mahalanobis[two_sided=true]",
    "attribution-patching[target=logit-difference[a=1,b=2]]+mahalanobis",
    "resampling-profile[donors=2]+isolation-forest[n_estimators=7]",
    "activations+local-outlier-factor",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_read_and_written(text: str) -> None:
    assert detector_text(parse_detector(text)) == text


def test_parts_are_what_the_text_says() -> None:
    assert parse_detector("activations+mahalanobis") == Detector(Activations(), Mahalanobis())
    assert parse_detector(" attribution-patching[units=blocks] + mahalanobis + conformal ") == Detector(
        AttributionPatching(units="blocks"), Mahalanobis(), Conformal()
    )
    assert isinstance(parse_detector("activations+isolation-forest").reference, IsolationForest)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("activations", "activations+mahalanobis"),
        ("activations+", "is no detector"),
        ("a+b+c+d", "is no detector"),
        ("activatons+mahalanobis", "Try one of: activations |"),
        ("activations+mahalanobs", "Try one of: mahalanobis |"),
        ("activations[site=x]+mahalanobis", "sites"),
    ],
)
def test_mistakes_are_named(text: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_detector(text)
    assert said in str(caught.value)


def test_a_part_of_ones_own_stands_as_its_class() -> None:
    class Mine(Mahalanobis):
        pass

    assert detector_text(Detector(Activations(), Mine())) == "activations+Mine"
