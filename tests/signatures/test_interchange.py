"""Interchange per input equals the definition, written out one base and one source at a time."""

from __future__ import annotations

import numpy as np
import pytest

from causalmad import open_model
from causalmad.errors import FitError, HypothesisError
from causalmad.signatures import Interchange
from causalmad.signatures.base import State
from causalmad.testing.toys import toy
from tests.hypotheses.claimed import FAMILIES, choices, claimed, data_of, family
from tests.twins import interchange as twin


@pytest.mark.parametrize("mechanisms", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_column_equals_the_twin(name, mechanisms):
    model, trusted, fresh, slow = family(name)
    hypothesis, variables = claimed(name, mechanisms)
    fitted = Interchange(hypothesis, draws=3).fit(open_model(model, batch_size=2), trusted, seed=2)
    inputs = fresh[[1, 3]]
    found = fitted.reduced(inputs)
    columns = twin.predicted if mechanisms else twin.unpredicted
    drawn = choices(fitted.scrubber.pool, inputs, 3)
    expected = [columns(slow, variables, *pair) for pair in zip(data_of(inputs), drawn, strict=True)]
    np.testing.assert_allclose(found.values, expected, atol=1e-5, rtol=1e-5)
    names = [column.name for column in found.columns]
    assert ("early as source agreement" in names) == mechanisms
    assert ("early as source, same kl" in names) == (not mechanisms)


def test_donors_are_those_of_the_columns():
    model, trusted, fresh, _ = family("gpt2")
    for mechanisms, roles in ((True, {"base", "source"}), (False, {"same", "other"})):
        hypothesis, _ = claimed("gpt2", mechanisms)
        fitted = Interchange(hypothesis, draws=3).fit(open_model(model), trusted)
        found = fitted.donors_of(fresh[[3]])
        assert {name.partition(", ")[2] for name in found} == roles and len(found) == 6
        assert all(set(ids) <= set(trusted.ids) for ids in found.values())
    assert found["side, same"] == () and len(found["side, other"]) == 3


def test_state_restores():
    model, trusted, fresh, _ = family("neox")
    hypothesis, _ = claimed("neox")
    fitted = Interchange(hypothesis, draws=2).fit(open_model(model), trusted)
    state = fitted.state()
    again = fitted.spec.restore(open_model(model), State(dict(state.tensors), state.data))
    assert np.array_equal(again(fresh).values, fitted(fresh).values)


def test_what_is_missing_is_named():
    made = toy("mlp")
    with pytest.raises(HypothesisError, match="interchange has no hypothesis"):
        Interchange().fit(open_model(made.model), made.trusted)
    with pytest.raises(FitError):
        Interchange(made.hypothesis, draws=0)
