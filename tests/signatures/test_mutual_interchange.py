"""Mutual interchange equals runs with plain hooks, partner by partner, and nothing changes between equals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from causalmad import Inputs, open_model
from causalmad.errors import FitError, SiteError
from causalmad.signatures import MutualInterchange
from causalmad.signatures.base import State
from causalmad.testing import signature_laws as laws
from causalmad.testing.toys import toy
from tests.signatures.families import small
from tests.twins import mutual_interchange as twin
from tests.twins.resampling_profile import log_probabilities, run


def fitted_on(made, seed=3, **options):
    return MutualInterchange(**{"draws": 2, **options}).fit(open_model(made.model, batch_size=5), made.trusted, seed)


def partners(fitted, slow, inputs):
    """Rows of the pool, by the twin: (likes, others) of every input."""
    pool = fitted.partners.pool.inputs
    known = [(digest, run(slow, row)) for digest, row in zip(pool.digests, pool.main, strict=True)]
    likes, others = [], []
    for digest, row in zip(inputs.digests, inputs.main, strict=True):
        logits = run(slow, row)
        likes.append(twin.like(logits, digest, known, fitted.spec.draws))
        others.append(twin.another(logits, digest, known, fitted.spec.draws, 3))
    return likes, others


@pytest.mark.parametrize(("name", "trusted"), [("mlp", 16), ("gpt2", 14), ("neox", 14)])
def test_columns_equal_the_twin(name, trusted):
    made, slow = small(name, trusted=trusted, fresh=3)
    fitted = fitted_on(made)
    pool = fitted.partners.pool.inputs
    inputs = pool[:1]
    main = [*made.fresh.main, *inputs.main]
    inputs = Inputs.of({"input_ids": main}) if made.fresh.tokens else Inputs.of(torch.stack(main))
    likes, others = partners(fitted, slow, inputs)
    ids = fitted.donors_of(inputs[[2]])
    assert ids["its like"] == tuple(pool.ids[i] for i in likes[2])
    assert ids["another"] == tuple(pool.ids[i] for i in others[2])
    found = fitted.reduced(inputs).values
    for number, site in enumerate(fitted.sites):
        features = list(site.neurons) or slice(None)
        expected = [
            twin.columns(
                slow, row, [pool.main[i] for i in a], [pool.main[i] for i in b], site.path, features, made.fresh.tokens
            )
            for row, a, b in zip(inputs.main, likes, others, strict=True)
        ]
        np.testing.assert_allclose(found[:, 6 * number : 6 * number + 6], expected, atol=1e-5, rtol=1e-4)
    classes = [[twin.top(run(slow, pool.main[i])) for i in row] for row in likes]
    own = [twin.top(run(slow, row)) for row in inputs.main]
    shares = [sum(label != mine for label in row) / 2 for row, mine in zip(classes, own, strict=True)]
    np.testing.assert_allclose(found[:, -1], shares)


def test_the_usual_sites_are_those_before_the_answer():
    sites = {name: list(map(str, fitted_on(toy(name, trusted=8)).sites)) for name in ("gpt2", "bert", "mlp")}
    assert sites["gpt2"] == [
        "transformer.h.0@-1",
        "transformer.h.0.attn@-1",
        "transformer.h.1.attn@-1",
        "transformer.h.0.mlp@-1",
        "transformer.h.1.mlp@-1",
    ]
    assert all(text.endswith("@0") for text in sites["bert"]) and len(sites["bert"]) == 5
    assert len(sites["mlp"]) == 8 and sites["mlp"][0] == "1#neuron=0,1,2,3"


def test_an_identical_donor_changes_nothing():
    """Inputs that differ only where the model does not look have equal partners: exactly no change, both ways round."""
    made, _ = small("mlp", trusted=8)
    rows = made.trusted.main.repeat(3, 1).clone()
    rows[:, 9:] = torch.randn(len(rows), 3, generator=torch.Generator().manual_seed(0))
    made = replace(made, trusted=Inputs.of(rows))
    fitted = fitted_on(made)
    found = fitted.reduced(made.trusted[:8])
    for what in ("from its like kl", "from its like margin", "into its like kl", "into its like margin"):
        assert not found.values[:, [column.unit == what for column in found.columns]].any()
    moved = found.values[:, [column.unit == "into another log-probability" for column in found.columns]]
    assert np.abs(moved).max() > 0.1


def test_a_site_that_carries_the_decision_carries_it_all():
    """Everything after a whole layer of a chain follows from it, so the receiver gives the giver's output."""
    made, slow = small("mlp", trusted=16)
    fitted = fitted_on(made, sites="4", draws=3)
    found = fitted.reduced(made.fresh)
    pool = fitted.partners.pool.inputs
    likes, others = partners(fitted, slow, made.fresh)
    for row, given, other, values in zip(made.fresh.main, likes, others, found.values, strict=True):
        clean = run(slow, row)
        mine = log_probabilities(clean)[twin.top(clean)]
        theirs = [log_probabilities(run(slow, pool.main[i]))[twin.top(clean)] for i in other]
        assert values[4] == pytest.approx(mine, abs=1e-5)
        assert values[5] == pytest.approx(mine - sum(theirs) / 3, abs=1e-5)
        # From its like comes its like's output.
        kl = [twin.divergence(clean, run(slow, pool.main[i])) for i in given]
        assert values[0] == pytest.approx(sum(kl) / 3, abs=1e-5)


def test_without_another_class_the_farthest_take_its_place():
    made, slow = small("conv", trusted=12)
    fitted = fitted_on(made, draws=3)
    assert len(set(fitted.partners.classes.tolist())) == 1  # this model always answers the same
    likes, others = partners(fitted, slow, made.fresh)
    ids = fitted.partners.pool.inputs.ids
    for row in range(len(made.fresh)):
        found = fitted.donors_of(made.fresh[[row]])
        assert found["another"] == tuple(ids[i] for i in others[row])
        assert found["its like"] == tuple(ids[i] for i in likes[row])


def test_few_partners_are_used_again_and_none_is_the_input_itself():
    made, _ = small("mlp", trusted=3)
    fitted = fitted_on(made, draws=5)
    for row in range(3):
        one = made.trusted[[row]]
        for kind, ids in fitted.donors_of(one).items():
            assert len(ids) == 5 and one.ids[0] not in ids, kind
    assert np.isfinite(fitted(made.trusted).values).all()


def test_the_order_and_repeats_of_trusted_inputs_decide_nothing():
    made, _ = small("gpt2", trusted=12)
    values = fitted_on(made)(made.fresh).values
    rows = [*reversed(made.trusted.main), made.trusted.main[0]]
    again = fitted_on(replace(made, trusted=Inputs.of({"input_ids": rows})))
    assert len(again.partners.pool.inputs) == 12
    raw = again.reduced(made.fresh).values
    np.testing.assert_allclose(raw, fitted_on(made).reduced(made.fresh).values, atol=1e-5)
    assert values.shape == raw.shape


def test_state_restores():
    made, _ = small("gpt2", trusted=10)
    fitted = fitted_on(made, sites=("residual@-1", "transformer.h.1.attn#head=1"))
    state = fitted.state()
    again = fitted.spec.restore(open_model(made.model, batch_size=5), State(dict(state.tensors), state.data))
    assert np.array_equal(again(made.fresh).values, fitted(made.fresh).values)


VARIANTS = [
    ("llama", MutualInterchange(("residual@-1", "heads"), draws=1)),
    ("mlp", MutualInterchange("layers", draws=9)),
]


@pytest.mark.parametrize("law", laws.SIGNATURE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize(("name", "spec"), VARIANTS)
def test_laws_hold_with_other_options(name, spec, law):
    law(spec, toy(name, trusted=16, fresh=7))


def test_rows_of_a_classifier_stand_alone():
    made = toy("bert", trusted=12, fresh=5)
    fitted = fitted_on(made)
    again = fitted.spec.restore(open_model(made.model, batch_size=1), fitted.state())
    np.testing.assert_allclose(again(made.fresh).values, fitted(made.fresh).values, atol=2e-5)


def test_odd_options_are_named():
    made = toy("gpt2", trusted=6)
    with pytest.raises(FitError, match="Needed"):
        MutualInterchange(draws=0)
    with pytest.raises(SiteError, match="no module"):
        fitted_on(made, sites="transformer.h.9")
    with pytest.raises(FitError, match="its own partner"):
        MutualInterchange().fit(open_model(made.model), made.trusted[:1])
