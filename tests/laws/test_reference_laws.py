"""Every reference of the catalogue, scikit-learn's estimators included, and every calibrator."""

import pytest
from sklearn.ensemble import IsolationForest

from causalmad.catalogue import catalogue
from causalmad.references import ConditionalMahalanobis, Mahalanobis, PerSite, PrincipalComponents, Transformed
from causalmad.references.mahalanobis import COVARIANCES
from causalmad.references.per_site import COMBINATIONS
from causalmad.references.transformed import TRANSFORMS
from causalmad.testing.calibrator_laws import CALIBRATOR_LAWS
from causalmad.testing.law import hold
from causalmad.testing.reference_laws import REFERENCE_LAWS

REFERENCES = {entry.name: entry.load()(**entry.defaults) for entry in catalogue("references")}
VARIANTS = [Mahalanobis(name, two_sided) for name in COVARIANCES[1:-1] for two_sided in (False, True)]
VARIANTS += [Mahalanobis("robust")]  # two-sided it takes ten searches a fit
VARIANTS += [Mahalanobis("low-rank", rank=2), PrincipalComponents(2), ConditionalMahalanobis("column [01]")]
VARIANTS += [Transformed(transform=name) for name in TRANSFORMS[1:]] + [Transformed(IsolationForest(n_estimators=20))]
VARIANTS += [PerSite(combine=name) for name in COMBINATIONS[1:]] + [PerSite(Transformed(Mahalanobis("oas")))]


@pytest.mark.parametrize("law", REFERENCE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("part", REFERENCES)
def test_every_reference_keeps_every_law(part, law):
    hold(law, part, REFERENCES[part])


@pytest.mark.parametrize("law", REFERENCE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("spec", VARIANTS, ids=str)
def test_with_other_options_as_well(spec, law):
    hold(law, str(spec), spec)


@pytest.mark.parametrize("law", CALIBRATOR_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("entry", catalogue("calibrators"), ids=lambda entry: entry.name)
def test_every_calibrator_keeps_every_law(entry, law):
    hold(law, entry.name, entry.load()())
