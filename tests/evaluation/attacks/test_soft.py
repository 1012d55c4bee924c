"""Soft prompts: embeddings stand in for tokens in every view of a detector, and move as far as they may."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from causalmad import open_model
from causalmad.detectors import detector
from causalmad.errors import SpecError
from causalmad.evaluation.attacks import SoftPrompt, WhiteBox
from causalmad.evaluation.attacks.graphs import twice_differentiable
from causalmad.inputs import Inputs
from causalmad.testing.toys import toy

VIEWS = ("activations", "relevance-patching", "resampling-profile", "beatrix", "views-and-gram-fisher")


@pytest.fixture(scope="module")
def made():
    """Trusted rows of tokens 1 to 14, and four rows to alter."""
    found = toy("gpt2", trusted=80)
    found.model.eval()
    draw = torch.Generator().manual_seed(0)
    trusted = Inputs.of({"input_ids": torch.randint(1, 15, (80, 6), generator=draw)})
    rows = Inputs.of({"input_ids": torch.randint(1, 15, (4, 6), generator=draw)})
    return found.model, trusted, rows


@pytest.mark.parametrize("name", VIEWS)
def test_embeddings_of_other_tokens_score_as_these_tokens_do(made, name):
    """The oracle: with the embeddings of other tokens, every view sees these tokens."""
    model, trusted, rows = made
    fitted = detector(name).fit(model, trusted)
    box = WhiteBox.of(fitted)
    with twice_differentiable(model):
        still = SoftPrompt(0.0, 1).against(box, rows)
    others = (rows.main + 3) % 14 + 1
    weight = model.transformer.wte.weight.detach()
    found = replace(still, values=weight[others])
    expected = fitted.score(Inputs.of({"input_ids": others}))
    np.testing.assert_allclose(found.scored(box), expected, rtol=3e-3, atol=1e-3)
    assert not np.allclose(expected, fitted.score(rows), rtol=0.05)


@pytest.mark.parametrize("name", VIEWS)
def test_a_size_of_zero_changes_nothing(made, name):
    model, trusted, rows = made
    fitted = detector(name).fit(model, trusted)
    found = SoftPrompt(0.0, 2).against(WhiteBox.of(fitted), rows)
    torch.testing.assert_close(found.values, model.transformer.wte.weight.detach()[rows.main])
    np.testing.assert_allclose(found.scored(WhiteBox.of(fitted)), fitted.score(rows), rtol=2e-3, atol=1e-4)
    assert found.kept.all()
    assert found.scores.shape == (3, 4)


def test_the_score_falls_within_the_radius_and_the_rest_stays(made):
    model, trusted, _ = made
    opened = open_model(model)
    fitted = detector("activations").fit(opened, trusted)
    box = WhiteBox.of(fitted)
    before = model.state_dict()
    own = model.transformer.wte.weight.detach()
    odd = Inputs.of({"input_ids": torch.tensor([[15, 16, 17, 18, 19, 15]] * 3)})  # tokens that are never trusted
    free = torch.tensor([False, True, True, True, True, False])
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())
    found = SoftPrompt(0.5, 15).against(box, odd, free)
    moved = found.values - own[odd.main]
    assert float(moved[:, ~free].abs().max()) == 0
    assert 0 < float(moved.norm(dim=-1).max()) <= 0.5 * float(own.norm(dim=-1).mean()) * (1 + 1e-5)
    assert bool((np.diff(found.scores, axis=0) <= 0).all())
    assert found.scores[-1].sum() < found.scores[0].sum()
    assert found.scored(box).sum() < fitted.score(odd).sum()
    assert bool((found.answers(opened) == opened.logits(next(iter(opened.batches(odd)))).argmax(-1)).all())
    assert sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()) == hooks
    assert all(bool((before[key] == value).all()) for key, value in model.state_dict().items())
    assert not model.training


def test_numbers_have_no_embeddings():
    made = toy("mlp", trusted=100)
    made.model.eval()
    with pytest.raises(SpecError, match="Perturbation"):
        SoftPrompt(0.1).against(WhiteBox.of(detector("activations").fit(made.model, made.trusted)), made.fresh)
    for wrong in (lambda: SoftPrompt(-1), lambda: SoftPrompt(1, 0)):
        with pytest.raises(SpecError):
            wrong()
