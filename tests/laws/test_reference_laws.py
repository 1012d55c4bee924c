"""Every reference of the catalogue, scikit-learn's estimators included, and every calibrator."""

import pytest

from causalmad.catalogue import catalogue
from causalmad.references import Mahalanobis
from causalmad.testing.calibrator_laws import CALIBRATOR_LAWS
from causalmad.testing.law import hold
from causalmad.testing.reference_laws import REFERENCE_LAWS

REFERENCES = {entry.name: entry.load()(**entry.defaults) for entry in catalogue("references")}
VARIANTS = [Mahalanobis(name, two_sided) for name in ("oas", "empirical", "diagonal") for two_sided in (False, True)]


@pytest.mark.parametrize("law", REFERENCE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("part", REFERENCES)
def test_every_reference_keeps_every_law(part, law):
    hold(law, part, REFERENCES[part])


@pytest.mark.parametrize("law", REFERENCE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("spec", VARIANTS, ids=str)
def test_with_other_options_as_well(spec, law):
    hold(law, "mahalanobis", spec)


@pytest.mark.parametrize("law", CALIBRATOR_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("entry", catalogue("calibrators"), ids=lambda entry: entry.name)
def test_every_calibrator_keeps_every_law(entry, law):
    hold(law, entry.name, entry.load()())
