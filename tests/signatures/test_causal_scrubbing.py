"""Causal scrubbing per input equals the treeified recursion, written out one input and one node at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import causalmad as cm
from causalmad import open_model
from causalmad.errors import FitError, HypothesisError
from causalmad.signatures import CausalScrubbing, Interchange
from causalmad.signatures.base import State
from causalmad.testing.toys import toy
from tests.hypotheses.claimed import FAMILIES, choices, claimed, data_of, family
from tests.twins import scrubbing as twin


@pytest.mark.parametrize("unclaimed", ["shared", "separate"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_column_equals_the_twin(name, unclaimed):
    model, trusted, fresh, slow = family(name)
    hypothesis, variables = claimed(name)
    assert len({len(row) for row in trusted.main}) > 2
    spec = CausalScrubbing(hypothesis, draws=3, unclaimed=unclaimed)
    fitted = spec.fit(open_model(model, batch_size=2), trusted, seed=4)
    # Fresh inputs, one with a value that no trusted input has, and a trusted one, which is never its own donor.
    for inputs in (fresh, trusted[:1]):
        found = fitted.reduced(inputs)
        drawn = choices(fitted.scrubber.pool, inputs, 3)
        expected = [
            twin.columns(slow, variables, datum, some, unclaimed == "separate")
            for datum, some in zip(data_of(inputs), drawn, strict=True)
        ]
        np.testing.assert_allclose(found.values, expected, atol=1e-5, rtol=1e-5)
    names = [column.name for column in found.columns]
    assert names[0] == "claim early kl" and names[-2:] == ["whole flips", "without donors"]
    assert len(names) == 6 * 5 + 1


def test_on_vectors_it_equals_the_twin():
    made = toy("mlp", 20, 5)
    hypothesis = made.hypothesis
    first, second = hypothesis.claims
    slow = made.model.eval()
    variables = {
        "sign": twin.Variable((twin.Spot("1"),), first.value),
        "pair": twin.Variable((twin.Spot("4"),), second.value, ("sign",)),
        twin.OUTPUT: twin.Variable((), None, ("pair",)),
    }
    fitted = CausalScrubbing(hypothesis, draws=4).fit(open_model(made.model), made.trusted)
    drawn = choices(fitted.scrubber.pool, made.fresh, 4)
    expected = [twin.columns(slow, variables, *pair) for pair in zip(data_of(made.fresh), drawn, strict=True)]
    np.testing.assert_allclose(fitted.reduced(made.fresh).values, expected, atol=1e-5, rtol=1e-5)


def test_a_value_that_nobody_has_is_counted_and_not_replaced_by_another():
    model, trusted, fresh, _ = family("gpt2")
    hypothesis, _ = claimed("gpt2")
    fitted = CausalScrubbing(hypothesis, draws=2).fit(open_model(model), trusted)
    found = fitted.reduced(fresh)
    missing = found.values[:, [column.name for column in found.columns].index("without donors")]
    # The last input has an unseen kind: "late" and "side" find nobody, and so neither does the whole.
    assert missing.tolist() == [0, 0, 0, 0.75]
    blocks = {column.block for column, value in zip(found.columns, found.values[3], strict=True) if value == 0}
    assert {"claim late", "claim side", "whole"} <= blocks
    donors = fitted.donors_of(fresh[[3]])
    assert donors["claim side"] == () and len(donors["claim early"]) == 2
    assert set(donors["claim early"]) <= set(trusted.ids)


def test_rows_do_not_depend_on_company_order_or_batches():
    model, trusted, fresh, _ = family("llama")
    hypothesis, _ = claimed("llama")
    fitted = CausalScrubbing(hypothesis, draws=2).fit(open_model(model), trusted, seed=1)
    together = fitted(fresh).values
    np.testing.assert_allclose(fitted(fresh[[3, 1]]).values, together[[3, 1]], atol=1e-5)
    state = fitted.state()
    again = fitted.spec.restore(open_model(model, batch_size=1), State(dict(state.tensors), state.data))
    np.testing.assert_allclose(again(fresh).values, together, atol=1e-4)


def test_the_input_itself_unchanged_is_no_effect():
    """A claim whose donors all have the input's own activation changes nothing, exactly."""
    made = toy("mlp")
    idle = made.trusted.blocks["idle"]
    rows = made.fresh.main[:1].repeat(3, 1)
    rows[:, idle[0]] += torch.tensor([0.01, 0.02, 0.03])  # the values stay the same
    fitted = CausalScrubbing(made.hypothesis, draws=4).fit(open_model(made.model), cm.Inputs.of(rows))
    values = fitted.reduced(replace(made.fresh[:1], blocks={})).values
    assert not values.any()


@pytest.mark.parametrize("kind", [CausalScrubbing, Interchange])
def test_standing_edits_do_not_reach_the_donors(kind):
    """A fitted signature that is moved to a view and one that is restored there have the same donors."""
    made = toy("mlp", 20, 5)
    opened = open_model(made.model)
    fitted = kind(made.hypothesis).fit(opened, made.trusted)
    view = replace(opened, standing=lambda _: {opened.sites("1")[0].place: lambda value: 0 * value})
    moved = replace(fitted, model=view).reduced(made.fresh).values
    assert np.abs(moved - fitted.reduced(made.fresh).values).max() > 1e-3
    assert np.array_equal(fitted.spec.restore(view, fitted.state()).reduced(made.fresh).values, moved)


def test_what_is_missing_is_named():
    made = toy("mlp")
    with pytest.raises(HypothesisError, match="no hypothesis to test"):
        CausalScrubbing().fit(open_model(made.model), made.trusted)
    with pytest.raises(HypothesisError, match="was given a DiGraph"):
        CausalScrubbing(made.hypothesis.to_networkx()).fit(open_model(made.model), made.trusted)
    with pytest.raises(HypothesisError, match="claim places without values"):
        CausalScrubbing(cm.Hypothesis.from_circuit(["1"])).fit(open_model(made.model), made.trusted)
    for options in ({"draws": 0}, {"unclaimed": "both"}):
        with pytest.raises(FitError):
            CausalScrubbing(made.hypothesis, **options)
