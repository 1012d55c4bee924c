"""Attacks on inputs stay inside their budget, keep the answer, and never end higher than they began."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from causalmad import open_model
from causalmad.detectors import detector
from causalmad.errors import SpecError
from causalmad.evaluation.attacks import NumberSearch, Perturbation, TokenSearch, WhiteBox
from causalmad.evaluation.attacks.altered import answers, values_of
from causalmad.inputs import Inputs
from causalmad.testing.toys import toy


def shouted(made):
    """The toy's inputs, five times as large, so that a detector of activations finds them odd."""
    return Inputs.of(5 * made.fresh.main, blocks=made.fresh.blocks)


@pytest.mark.parametrize("name", ["activations", "relevance-patching", "views-harmonic"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_perturbation_lowers_the_score_within_its_size(name, shared):
    made = toy("mlp", trusted=150)
    made.model.eval()
    odd, free = shouted(made), torch.arange(12) != 3
    fitted = detector(name).fit(made.model, made.trusted)
    box = WhiteBox.of(fitted)
    flags = {key: value.requires_grad for key, value in made.model.named_parameters()}
    asked = -99.0 if shared else 0.5  # with no margin to keep, the loss of a shared change is the excess alone
    found = Perturbation(2.0, 20, shared, low=-99, high=99, margin=asked).against(box, odd, free)
    moved = found.inputs.main - odd.main
    assert float(moved.abs().max()) <= 2.0 + 1e-5
    assert float(moved[:, 3].abs().max()) == 0
    now = answers(fitted.model, found.inputs) == answers(fitted.model, odd)
    assert bool((now.numpy() >= found.kept).all()) or shared
    assert bool((np.diff(found.scores.sum(1, keepdims=True) if shared else found.scores, axis=0) <= 1e-12).all())
    (batch,) = box.model.batches(found.inputs, size=len(odd))
    (first,) = box.model.batches(odd, size=len(odd))
    before, after = (box.excess(part).detach().numpy() for part in (first, batch))
    np.testing.assert_allclose(found.scores[-1], after, rtol=1e-4, atol=1e-4)
    if not shared:
        assert after[found.kept].sum() < before[found.kept].sum()
    else:
        assert after.sum() <= before.sum()
        assert float((moved - moved[:1]).abs().max()) < 1e-5
    assert {key: value.requires_grad for key, value in made.model.named_parameters()} == flags


@settings(max_examples=5, deadline=None)
@given(some.floats(0.1, 3.0), some.integers(0, 99))
def test_a_search_of_numbers_stays_in_its_box(size, seed):
    made = toy("mlp", trusted=100)
    made.model.eval()
    odd, free = shouted(made), torch.arange(12) < 6
    fitted = detector("activations").fit(made.model, made.trusted)
    found = NumberSearch(size, 15, low=-99, high=99).against(fitted.score, fitted.model, odd, free, seed)
    moved = found.inputs.main - odd.main
    assert float(moved.abs().max()) <= size * 1.0001
    assert float(moved[:, 6:].abs().max()) == 0
    np.testing.assert_allclose(fitted.score(found.inputs), found.scores[-1])
    assert bool((np.diff(found.scores, axis=0) <= 0).all())
    assert bool((answers(fitted.model, found.inputs) == answers(fitted.model, odd)).all())


@pytest.mark.parametrize("guided", [False, True])
def test_a_search_of_tokens_replaces_what_it_may_and_no_more(guided):
    made = toy("gpt2", trusted=60)
    made.model.eval()
    model = open_model(made.model)
    rows = Inputs.of({"input_ids": torch.randint(1, 20, (12, 7), generator=torch.Generator().manual_seed(0))})
    fitted = detector("activations").fit(model, made.trusted)
    small, large = tuple(range(1, 8)), tuple(range(8, 15))
    others = {**dict.fromkeys(small, small), **dict.fromkeys(large, large)}  # 15 to 19 stay
    attack = TokenSearch(others, most=2, queries=25)
    found = attack.against(fitted.score, fitted.model, rows, WhiteBox.of(fitted) if guided else None)
    before, after = values_of(rows), values_of(found.inputs)
    assert int((before != after).sum(1).max()) == 2
    for old, new in zip(before.flatten().tolist(), after.flatten().tolist(), strict=True):
        assert old == new or new in others[old]
    np.testing.assert_allclose(fitted.score(found.inputs), found.scores[-1], rtol=1e-5)
    assert found.scores[-1].mean() < found.scores[0].mean()
    assert bool((answers(model, found.inputs) == answers(model, rows)).all())


def test_gradients_promise_what_a_replacement_does_to_first_order():
    """For a small step towards another token's embedding, the promised change is the slope of the excess."""
    from dataclasses import replace

    from causalmad.evaluation.attacks.searches import _promised

    made = toy("gpt2", trusted=100)
    made.model.double().eval()
    rows = Inputs.of({"input_ids": torch.randint(1, 20, (4, 6), generator=torch.Generator().manual_seed(0))})
    box = WhiteBox.of(detector("activations").fit(made.model, made.trusted))
    promised = _promised(box, rows)
    (batch,) = box.model.batches(rows, size=4)
    weight = made.model.transformer.wte.weight.detach()
    own = weight[batch.main]
    moved = own.clone()
    moved[:, 2] += 1e-4 * (weight[5] - own[:, 2])
    excess = [box.excess(batch, replace(box.model, soft=soft, tokens=batch.main)).detach() for soft in (own, moved)]
    torch.testing.assert_close((excess[1] - excess[0]) / 1e-4, promised[:, 2, 5], rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("attack", [Perturbation(0.0, 2), NumberSearch(0.0, 2)])
def test_numbers_outside_the_bounds_stay_where_they_were(attack):
    made = toy("mlp", trusted=100)
    made.model.eval()
    fitted = detector("activations").fit(made.model, made.trusted)
    if isinstance(attack, Perturbation):
        found = attack.against(WhiteBox.of(fitted), made.fresh)
    else:
        found = attack.against(fitted.score, fitted.model, made.fresh)
    torch.testing.assert_close(found.inputs.main, made.fresh.main)


def test_tokens_are_no_numbers():
    made = toy("gpt2", trusted=100)
    made.model.eval()
    box = WhiteBox.of(detector("activations").fit(made.model, made.trusted))
    with pytest.raises(SpecError, match="TokenSearch"):
        Perturbation(0.1).against(box, made.fresh)
    for wrong in (lambda: Perturbation(-1), lambda: NumberSearch(1, 0), lambda: TokenSearch({}, 1, 1)):
        with pytest.raises(SpecError):
            wrong()
