"""Detectors as text, there and back."""

from __future__ import annotations

import pytest
from sklearn.ensemble import IsolationForest

from causalmad.calibration import Conformal
from causalmad.detector import Detector
from causalmad.detectors import detector
from causalmad.errors import SpecError
from causalmad.names import detector_text, parse_detector, with_hypothesis
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


@pytest.mark.parametrize("name", ["recommended", "activations-lof", " ted "])
def test_ready_made_detectors_go_by_their_names(name: str) -> None:
    assert detector_text(parse_detector(name)) == detector_text(detector(name.strip()))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("activation", "Try one of: activations |"),
        ("activation", "'activation+mahalanobis'"),
        ("", "no detector is called ''"),
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


NESTED = [
    "concat[signatures=activations;output-only]+mahalanobis",
    "conditional[signature=activations[positions=0],on=margin]+mahalanobis",
    "conditional[signature=concat[signatures=activations;shares[of=all]],on=output-only]+mahalanobis",
    "signed-log[signature=sorted[signature=activations,top=3]]+mahalanobis",
]


@pytest.mark.parametrize("text", NESTED)
def test_signatures_inside_signatures_are_read_and_written(text):
    assert detector_text(parse_detector(text)) == text


def test_a_hypothesis_reaches_signatures_inside():
    from causalmad.signatures import Activations, CausalScrubbing, Concat, Shares, Sufficiency
    from causalmad.testing.toys import toy

    claim = toy("mlp").hypothesis
    found = with_hypothesis(Detector(Concat((Activations(), Shares(CausalScrubbing()), Sufficiency()))), claim)
    assert found.signature.signatures[1].signature.hypothesis is claim
    assert found.signature.signatures[2].circuit is None
    asked = with_hypothesis(Detector(Shares(Sufficiency())), claim, asked=True)
    assert asked.signature.signature.circuit is claim
    plain = Detector(Concat((Activations(),)))
    assert with_hypothesis(plain, claim) is plain
    with pytest.raises(SpecError, match="no hypothesis"):
        with_hypothesis(plain, claim, asked=True)
