import numpy as np
import pytest

from causalmad import open_model
from causalmad.errors import FitError
from causalmad.signatures import Activations, AttributionPatching, Concat, OutputOnly, ResamplingProfile
from causalmad.testing.toys import toy
from tests.signatures.combined import survives

MADE = toy("mlp", trusted=40, fresh=6)
MODEL = open_model(MADE.model)


def test_the_parts_stand_beside_each_other():
    specs = (Activations(), OutputOnly())
    found = Concat(specs).fit(MODEL, MADE.trusted, seed=2)(MADE.fresh)
    alone = [spec.fit(MODEL, MADE.trusted, seed=2)(MADE.fresh) for spec in specs]
    np.testing.assert_array_equal(found.values, np.concatenate([part.values for part in alone], axis=1))
    assert [column.name for column in found.columns] == [c.name for part in alone for c in part.columns]
    assert {column.block for column in found.columns} == {"activations: 1", "activations: 4", "output-only: output"}


def test_names_that_clash_have_their_part_in_front():
    found = Concat((OutputOnly(), OutputOnly(), Activations("1"))).fit(MODEL, MADE.trusted)
    names = [column.name for column in found.columns]
    assert names[0] == "output-only 1: log max probability" and names[4] == "output-only 2: log max probability"
    assert names[8] == "1[0]" and len(set(names)) == len(names)
    nested = Concat((Concat((OutputOnly(), OutputOnly())), Concat((OutputOnly(), OutputOnly()))))
    names = [column.name for column in nested.fit(MODEL, MADE.trusted).columns]
    assert len(set(names)) == len(names) == 16


def test_donors_and_units_of_all_parts():
    specs = (AttributionPatching(baseline="donors", donors=2), ResamplingProfile(donors=3))
    fitted = Concat(specs).fit(MODEL, MADE.trusted)
    alone = [spec.fit(MODEL, MADE.trusted) for spec in specs]
    assert set(fitted.donor_digests) == {key for part in alone for key in part.donor_digests}
    assert [group.names for group in fitted.groups] == [group.names for group in alone[0].groups]
    assert Concat((OutputOnly(),)).fit(MODEL, MADE.trusted).groups is None


def test_it_survives(tmp_path):
    fitted = survives(Concat((Activations(), Concat((OutputOnly(), AttributionPatching())))), MADE, tmp_path / "a")
    assert fitted.repair(MADE.fresh[0], MADE.trusted, alpha=0.9).id == MADE.fresh.ids[0]


@pytest.mark.parametrize("parts", [(), [Activations()], (Activations,), ("activations",)])
def test_what_is_no_signature(parts):
    with pytest.raises(FitError):
        Concat(parts)
